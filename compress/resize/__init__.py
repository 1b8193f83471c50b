"""How one layer shrinks.

- ``layer_types``: one table: type of layer -> how its tensors and attributes shrink
- ``layers``: layers, parameters and buffers of a network, shrunk by their names
- ``attention``: torch's attention layer with attention heads narrower than its embedding
- ``hardcoded_widths``: forwards with a width written into them, run with the sizes that are there
"""
