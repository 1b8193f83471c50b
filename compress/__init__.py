"""What is removed: from a dense network to a pruned one, with the plan that says how.

- ``options``: what a user says about target, criterion and scope
- ``group_records``: what a plan says of the network: costs and groups
- ``records``: what a plan says of what was asked and done
- ``hooks``: hooks that go again, and the order of calls
- ``sizes/``: the integers of a forward: which channels they count
- ``resize/``: how one layer shrinks
- ``graph/``: which channels depend on each other
- ``surgery/``: the plan, how it is applied, and the proof
- ``activations/``: calibration inputs, and what layers compute on them
- ``devices``: where networks are scored, measured and recovered
- ``calibration_inputs``: which inputs networks are scored, measured and recovered on
- ``importance/``: what makes a unit worth keeping
- ``allocation/``: how many units each group keeps
- ``state_file``: what unfinished work needs to go on, in one file
- ``recovery/``: accuracy won back without training
- ``structure``: what is known before units are scored
- ``assessment``: what is known before a target is set
- ``removal``: units removed, proved, and left dense where the proof fails
- ``prune``: from a dense network to a pruned one
- ``further``: a compressed network, compressed further
- ``pipeline``: pruning and recovery in one
- ``finetune/``: training on a task
"""
