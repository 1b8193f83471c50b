"""Which networks experiments take.

- ``gpu``: those that are timed on a GPU
- ``zoo``: those of torchvision and timm
"""
