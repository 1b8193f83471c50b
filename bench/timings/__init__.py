"""Timings of whole networks of random widths, to which the model of a latency target is fitted.

- ``slicing``: ONNX files of any allocation, by slicing the dense one
- ``staircase``: the width step of the device
- ``calibrate``: random allocations, timed
- ``table``: their table, kept or carried to another machine
"""
