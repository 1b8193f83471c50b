"""The integers of a forward: which channels they count, and where they stand in a call.

- ``arguments``: arguments of torch's operators
- ``size_calls``: functions that take sizes, and where the numbers stand in a call
- ``size_queries``: functions that return sizes
- ``call_sites``: where in a forward such a function is called
- ``traced_sizes``: integers that remember what they were computed from
- ``size_trace``: which sizes a forward asks for
- ``elementwise_counts``: how often an elementwise operation ran along a channel
"""
