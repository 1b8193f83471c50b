"""What a study's results say: errors by budget, a law, advice.

- ``curves``: errors by budget, the frontier, areas, crossings
- ``law``: a fitted law
- ``records``: what the summary says, typed
- ``advice_records``: what the advice says, typed
- ``advice``: what share of the MACs to keep
- ``summary``: the study in numbers
"""
