"""What a study's results say: errors by budget, a law, advice.

- ``curves``: errors by budget, the frontier, areas, crossings
- ``law``: a fitted law
- ``records``: what a study says, typed
- ``advice``: what share of the MACs to keep
- ``summary``: the study in numbers
"""
