"""torch-pruning's dependency graph, filled from the coupling; its groups shrink the network.

- ``channel_axes``: which unit lies at which position now, while units are removed
- ``fitted_forwards``: what forwards are told while the network shrinks
- ``shrinking``: which units may go, and a network that loses them
- ``nodes``: hubs and edges, and how positions map to units
- ``channel_group``: a group of torch-pruning's that shrinks its layers together
- ``channel_graph``: the graph
- ``channel_pruner``: torch-pruning's pruners on that graph
"""
