"""What each operator of torch does to the labels of channels.

- ``table``: one table: operator -> its handler
- ``elementwise``: operators that combine entries at the same place
- ``shape``: operators that move entries
- ``reduce``: operators that mix entries along a dimension
- ``weighted``: layers, products and attention
"""
