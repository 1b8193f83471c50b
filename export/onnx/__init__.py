"""ONNX files.

- ``exporter``: torch's dynamo exporter, for any batch or for one
- ``rewrites``: what is changed before and after torch's exporter
- ``onnx_file``: written, checked, read
- ``onnx_reader``: looked through before ONNX Runtime opens them
- ``memory``: a file that asks for more memory than is free is an error
"""
