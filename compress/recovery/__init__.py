"""Accuracy won back without labels.

- ``recover``: which way, and what it brought
- ``reconstruct``: weights solved anew, layer by layer
- ``clipping``: what activations such as ReLU leave open
- ``layer_rows``: one layer of these, and the rows of its equations
- ``input_channels``: what inputs that are left say of those that are gone
- ``rows_seen``: what passes show of the layers that are solved
- ``imitate``: all weights trained to compute the dense network's features
- ``imitation_state``: what it needs to go on
- ``features``: what imitation compares
- ``augment``: images changed at random
"""
