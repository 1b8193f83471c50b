"""Accuracy won back without training.

- ``recover``: which way, and what it brought
- ``reconstruct``: weights solved anew, layer by layer
"""
