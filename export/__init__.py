"""What is shipped: the bundle, ONNX, parity, the manifest and the model card."""
