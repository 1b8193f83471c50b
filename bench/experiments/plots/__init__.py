"""Plots of what experiments measure.

- ``panels``: lines of top-1, one panel beside the other, under one legend
- ``accuracy``: top-1 against the share of multiply-accumulates kept
- ``training``: top-1 against training FLOPs
- ``depth``: top-1 against measured latency, of narrower layers, fewer blocks, and both
- ``equal_accuracy``: top-1 against measured latency, of our recipe and of the uniform one
- ``latency``: top-1 against measured latency, of a latency target and of a MACs target
"""
