"""Which networks experiments take.

- ``gpu``: those that are timed on a GPU
- ``training``: those that trainings begin with
- ``zoo``: those of torchvision and timm
"""
