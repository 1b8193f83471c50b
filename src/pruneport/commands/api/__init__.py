"""What ``pruneport`` offers at its top: functions with keyword arguments, for who has a network in memory.

- ``keywords``: the fields of the configurations, as keyword arguments
- ``configured``: keyword arguments made a configuration
- ``pruning``: prune: from a network in memory to a pruned one
- ``pruned``: that network, which its methods save and export
- ``deployed``: a bundle with ONNX files, verified and timed by its methods
- ``bundles``: save, for a network that was trained elsewhere
- ``shipping``: ship by keywords
- ``inspecting``: inspect by keywords, and of a network in memory
- ``training``: finetune by keywords
- ``sweeping``: sweep by keywords
"""
