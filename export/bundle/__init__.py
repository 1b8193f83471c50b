"""The folder that is shipped: written whole or not at all, opened with its hashes checked.

- ``bundle``: opened
- ``writing``: written, updated
- ``weights``: the network's weights, written and read back bit for bit
- ``manifest``: who made it, with what
- ``unfinished``: what is on the disk while a bundle is written, and how it is taken back
"""
