"""The model card, and the sentences and figures that the report shares.

- ``card``: the bundle's README.md
- ``front_matter``: the YAML at its head, for the Hugging Face Hub
- ``summary``: sentences and figures
- ``verdict``: the first sentence and the warnings
- ``intervals``: how sure an accuracy is
"""
