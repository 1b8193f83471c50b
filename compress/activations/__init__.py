"""Calibration inputs, and what layers compute on them.

- ``calibration``: images of a folder, in batches; some are held out
- ``tensors``: the same of a DataLoader, or a list of tensors
- ``items``: one item of these, where the network takes other things than images
- ``synthetic``: inputs made from the BatchNorm statistics
- ``statistics``: these, measured anew, or those of inputs in their place for a while
- ``cuts``: where in its middle a network can be run from
- ``replay``: a network run from its middle
- ``carried``: what it computed up to there, in memory or in files
- ``memory``: how much of it may be used, by activations and in all, how it is used again, and errors where it ran out
- ``least_squares``: least squares in a residual stream
- ``row_weights``: what each row of it counts
"""
