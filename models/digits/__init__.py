"""The embedded network, how it was trained, and small tasks for it.

- ``network``: a residual network for scikit-learn's digits
- ``train``: how it was trained
- ``tasks``: small tasks made of the digits
"""
