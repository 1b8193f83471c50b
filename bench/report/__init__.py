"""The HTML report.

- ``svg``: plots in one style
- ``plots``: what was removed from every group; latencies
- ``report``: the page
"""
