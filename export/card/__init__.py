"""The model card, and the sentences and figures that the report shares.

- ``card``: the bundle's README.md
- ``summary``: sentences and figures
- ``verdict``: the first sentence and the warnings
- ``intervals``: how sure an accuracy is
"""
