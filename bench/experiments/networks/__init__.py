"""Which networks experiments take.

- ``gpu``: those that are timed on a GPU
- ``convolutions``: single layers
- ``training``: those that trainings begin with
- ``timed``: a trained one that is pruned, recovered, tested and timed
- ``zoo``: those of torchvision and timm
"""
