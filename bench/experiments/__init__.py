"""Scripts that measure the project itself; they are not in the wheel.

- ``accuracy``: accuracy without training: criteria, rankings, recoveries
- ``training``: accuracy against training FLOPs: the plain start and recovered ones
- ``precision``: fp32, fp16 and int8 of dense and pruned
- ``int8_kinds``: int8 of networks of many kinds, and what stays in float
- ``cross_task``: whether pruning on one task serves the others
- ``depth``: narrower layers against fewer residual branches, and both: accuracy against measured latency
- ``latency_target``: a latency target against a MACs target at equal latency
- ``overhead``: what our checks cost against the plain recipe
- ``load_time``: how fast a bundle loads
- ``peak_memory``: memory of compress
- ``zoo``: every network of torchvision and timm taken all the way
- ``gpu``: latencies on a GPU, against torch-pruning's uniform recipe
- ``latencies/``: single layers on a GPU, and recipes at equal accuracy
- ``plots/``: what some of them draw
- ``networks/``: what some of them take
- ``picture``: the README's picture
"""
