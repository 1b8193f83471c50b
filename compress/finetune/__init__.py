"""Training on a task.

- ``setup``: where a training starts and what it ends as
- ``checks``: what is checked before a training begins
- ``deterministic``: a GPU's algorithms that give the same result every time
- ``training``: the training loop
- ``steps``: single steps of an optimizer
- ``state``: the file from which a training goes on
- ``optimizers``: optimizers and learning rates
- ``schedule``: pruning while training
- ``distill``: distillation from the dense network
"""
