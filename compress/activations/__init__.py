"""Calibration inputs, and what layers compute on them.

- ``calibration``: images of a folder, in batches; some are held out
- ``tensors``: the same of a DataLoader, or a list of tensors
- ``synthetic``: inputs made from the BatchNorm statistics
- ``replay``: a network run from its middle
- ``least_squares``: least squares in a residual stream
"""
