"""Latency as a target: networks are timed, a model is fitted, and the chosen network is timed again.

- ``measuring``: random allocations timed here; the verb that writes them as a table
- ``tables``: which timings a model is fitted to: a given table, one that is kept, or new ones
- ``rounds``: one round after the other: solve, export, time, fit again
- ``asked``: what a target asks for, checked before any work
- ``loop``: the rounds until the target is met
"""
