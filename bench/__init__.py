"""What is measured: latency on ONNX Runtime, statistics, reports and plots."""
