"""The HTML report.

- ``svg``: plots in one style
- ``plots``: what was removed from every group; latencies
- ``precision_plot``: accuracy against latency, a mark a precision
- ``graph``: the coupled groups, drawn as a file or for the page
- ``graph_content``: what of a plan, or of what ``inspect`` found, is drawn
- ``graph_rows``: a row for each block, lines for what rows share, folded runs
- ``graph_colours``: a colour for each group
- ``graph_texts``: what it says
- ``graph_layout``: where everything stands
- ``graph_scene``: shapes with places
- ``graph_graphviz``: drawn by Graphviz
- ``graph_matplotlib``: drawn by matplotlib, where there is no Graphviz
- ``report``: the page
"""
