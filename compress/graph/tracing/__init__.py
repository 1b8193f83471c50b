"""One forward pass in which every tensor carries whose channels its entries are.

- ``tracer``: one forward pass in which every tensor carries whose channels its entries are
- ``labels``: the labels of tensors, and the channels that they depend on unseen
- ``weight_views``: tensors that are parameters of layers, seen another way
- ``forward_sizes``: sizes that forwards give and ask for, noted on the way
- ``dataflow``: which operation read what which other one made, and the residual branches that this shows
- ``trace``: what the pass found, noted by the handlers and frozen
- ``channel_ids``: numbers for channels, joined step by step into units; those of a tensor's entries
"""
