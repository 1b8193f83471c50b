"""Which networks experiments take.

- ``all_the_way``: one of random weights, taken from pruning to ONNX
- ``gpu``: those that are timed on a GPU
- ``convolutions``: single layers
- ``training``: those that trainings begin with
- ``timed``: a trained one that is pruned, recovered, tested and timed
- ``zoo``: those of torchvision and timm
"""
