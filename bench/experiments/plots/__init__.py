"""Plots of what experiments measure.

- ``accuracy``: top-1 against the share of multiply-accumulates kept
- ``latency``: top-1 against measured latency
- ``training``: top-1 against training FLOPs
"""
