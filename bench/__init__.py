"""What is measured: latency on ONNX Runtime, the report, the transfer study.

- ``options``: what a user says about timing
- ``gpu_state``: why a GPU's clocks are low, who else uses it, which libraries run
- ``nvml``: a GPU as its driver sees it
- ``devices``: CPU and GPU, with clocks and power
- ``latency/``: dense against pruned
- ``timings/``: whole networks of random widths, timed for a latency target
- ``report/``: the HTML report
- ``sweep/``: the trade-off between accuracy, latency and size
- ``transfer/``: the study of how much to prune before fine-tuning
- ``experiments/``: scripts that measure the project itself; not in the wheel
"""
