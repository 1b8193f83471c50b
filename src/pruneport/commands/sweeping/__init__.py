"""sweep, and the search for a network within limits: many networks from one assessment.

- ``making``: one pruned network after the other, each a bundle
- ``folder``: the sweep's folder: what is in it, and whether it may go on
- ``spreading``: points made side by side over a Ray cluster, and timed here
- ``sweep``: the verb
- ``search``: ship without a target
"""
