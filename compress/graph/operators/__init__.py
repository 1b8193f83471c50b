"""What each operator of torch does to the labels of channels.

- ``table``: one table: operator -> its handler
- ``elementwise``: operators that combine entries at the same place
- ``shape``: operators that move entries
- ``reduce``: operators that mix entries along a dimension
- ``layer_channels``: what layers of every kind do: read channels, pass on others, make their own
- ``convolution``: convolutions
- ``product``: linear layers and matrix products
- ``attention``: fused attention and torch's layer
- ``norm``: norms, and activations with a number per channel
"""
