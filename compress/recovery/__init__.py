"""Accuracy won back without training.

- ``recover``: which way, and what it brought
- ``statistics``: BatchNorm statistics estimated anew
- ``reconstruct``: weights solved anew, layer by layer
"""
