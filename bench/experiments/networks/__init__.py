"""Which networks experiments take.

- ``gpu``: those that are timed on a GPU
- ``timed``: a trained one that is pruned, recovered, tested and timed
- ``zoo``: those of torchvision and timm
"""
