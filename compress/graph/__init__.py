"""Which channels of which layers depend on each other, found in one forward pass.

- ``tracing/``: one forward pass in which every tensor carries whose channels its entries are
- ``operators/``: what each operator of torch does to the labels, in one table
- ``coupling``: which channel of which layer is coupled to which: what the pass found
- ``channel_axes``: which unit lies at which position now, while units are removed
- ``module_attributes``: attributes of modules that hold widths, and scales that follow them
- ``fitted_forwards``: what forwards are told while the network shrinks
- ``channel_group``: a group of torch-pruning's that shrinks its layers together
- ``dependency_nodes``: its hubs and edges, and how positions map to units
- ``dependency``: torch-pruning's dependency graph, filled from the coupling; its groups shrink the network
- ``channel_pruner``: torch-pruning's pruners on that graph
- ``groups``: groups of units: inside a block, in a residual stream, the representation, or an output
- ``branches``: residual branches that may be dropped as a whole
- ``widths``: the widths a group may have, and its units at one of them
- ``output_layers``: which layers make the outputs
"""
