"""Dense against pruned, timed fairly.

- ``onnx_input``: what an ONNX file takes
- ``providers``: options of the execution providers, their libraries, TF32
- ``bound``: a batch in the provider's own memory
- ``sessions``: ONNX Runtime sessions that run where they were asked to
- ``stats``: percentiles, bootstrap interval
- ``timed_form``: the file that is timed: fp32, or int8 made of it
- ``probe``: whether a provider computes
- ``timer``: one run on the clock, networks in turns
- ``checks``: what is checked before, and of the speed-up after
- ``measure``: dense against pruned, interleaved
- ``records``: what bench.json says, read by a schema
"""
