"""How many units each group keeps, so that the network meets its target.

- ``cost``: MACs and parameters of a network, counted by fvcore
- ``cost_model``: the same for any widths, from one count of the dense network
- ``cost_terms``: what such a cost is made of, layer by layer
- ``forms``: costs as functions of widths: polynomials, tables for the solver
- ``latency_model``: the latency of any widths, fitted to timings of whole networks
- ``knapsack``: the widths of least damage, solved for
- ``approach``: from widths near the target to the nearest
- ``target``: what is asked, how far it reaches, and what is said where it cannot be met
- ``search``: widths searched to the target
"""
