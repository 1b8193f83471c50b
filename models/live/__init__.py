"""A network that a Python caller holds already, as a source: checked, copied, and named.

- ``identity``: what such a network is called in a plan, and the hash of its state
- ``example``: example inputs, read: what they say of all that it takes
- ``copying``: what cannot be pruned is refused by name; the rest is copied, and the copy is what we work on
"""
