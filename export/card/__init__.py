"""The model card, and the sentences and figures that the report shares.

- ``card``: the bundle's README.md
- ``front_matter``: the YAML at its head, for the Hugging Face Hub
- ``words``: text and numbers as they are written
- ``provenance``: how the network was made
- ``summary``: the headline, and dense against pruned
- ``verdict``: the first sentence and the warnings
- ``precisions``: the table of fp32, fp16 and int8
- ``intervals``: how sure an accuracy is
"""
