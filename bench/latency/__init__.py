"""Dense against pruned, timed fairly.

- ``onnx_input``: what an ONNX file takes
- ``sessions``: ONNX Runtime sessions that run where they were asked to
- ``stats``: percentiles, bootstrap interval
- ``measure``: dense against pruned, interleaved
- ``records``: what bench.json says, read by a schema
"""
