"""How many units each group keeps, so that the network meets its target.

- ``cost``: MACs and parameters, counted by fvcore once, then known for any widths
- ``knapsack``: the widths of least damage, solved for
- ``search``: widths searched to the target
"""
