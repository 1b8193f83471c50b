"""ONNX files.

- ``form``: what a user asks of the files, checked
- ``opsets``: which may be asked for, and whether a graph's operators are in one
- ``capture``: torch's dynamo exporter
- ``onnx_network``: a network as ONNX in memory, and how it is written
- ``exporter``: from a torch network to that, for any batch or for one, and why it cannot be
- ``embedding``: the normalisation inside a file
- ``naming``: of inputs, outputs, weights and nodes
- ``detectors``: boxes of data-dependent number, in a form that can be traced
- ``rewrites``: what is changed before and after torch's exporter
- ``zeros``: what dropped branches leave in a graph, left out
- ``onnx_file``: written, checked, read
- ``onnx_reader``: looked through before ONNX Runtime opens them
- ``memory``: a file that asks for more memory than is free is an error
"""
