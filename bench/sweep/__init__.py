"""The trade-off between accuracy, latency and size, measured point by point.

- ``records``: what sweep.json says
- ``picks``: which point is worth it, and where to look next
- ``words``: the same in sentences
- ``plots``: accuracy against latency and against size
- ``report``: the page
"""
