"""How one layer shrinks.

- ``layers``: one table: layer type -> how its tensors and attributes shrink
- ``attention``: torch's attention layer with attention heads narrower than its embedding
- ``hardcoded_widths``: forwards with a width written into them, run with the sizes that are there
"""
