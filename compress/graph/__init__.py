"""Which channels of which layers depend on each other, found in one forward pass.

- ``tracing/``: one forward pass in which every tensor carries whose channels its entries are
- ``operators/``: what each operator of torch does to the labels, in one table
- ``coupling``: which channel of which layer is coupled to which
- ``coupled_units``: that, from what the pass found
- ``module_attributes``: attributes of modules that hold widths, and scales that follow them
- ``groups``: groups of units: inside a block, in a residual stream, the representation, or an output
- ``dependency/``: torch-pruning's dependency graph, filled from the coupling
- ``branches``: residual branches that may be dropped as a whole
- ``widths``: the widths a group may have, and its units at one of them
- ``output_layers``: which layers make the outputs
"""
