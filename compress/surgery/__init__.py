"""The plan, how it is applied, and the proof that removing equals zeroing.

- ``plan``: which units stay, what was asked and what was achieved: read and written
- ``apply``: the dense network made the pruned one by a plan
- ``dropping``: what stands in the place of a dropped branch
- ``compose``: one plan of two in a row, where a compressed network is compressed further
- ``plan_schema``: the schema of plan.json
- ``plan_bounds``: its groups, once they are known to take no more memory than the weights allow
- ``kept_tracer``: the network with zeroed channels, whose averages leave those out
- ``zeroing_check``: the proof that removing does what zeroing does
- ``rebuild``: the pruned network again, from plan and weights, without a trace
"""
