"""What makes a unit worth keeping, and what it costs to remove it.

- ``criteria``: the registry of criteria
- ``scoring``: how each of them scores
- ``group_scores``: from numbers a weight to one score a unit
- ``torch_pruning_scores``: importances of torch-pruning as criteria
- ``gradients``: gradients of the loss
- ``obs``: structured optimal brain surgeon (block-hessian)
- ``consumers``: the layers that read a group, as least-squares problems
- ``sensitivity``: what the removal of each group costs, measured
- ``drops``: what dropping each residual branch costs, measured
"""
