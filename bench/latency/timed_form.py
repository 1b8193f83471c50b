"""The file that is timed for a latency target: the fp32 file of a network, or fp16 or int8 made of it."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx.external_data_helper import load_external_data_for_model

from pruneport.bench.latency.onnx_input import read_inputs
from pruneport.bench.options import ProviderName, TimedPrecision
from pruneport.export.bundle.bundle import DATA
from pruneport.export.onnx.onnx_reader import read_onnx
from pruneport.export.precisions.calibration_reader import OnePart
from pruneport.export.precisions.providers import int8_provider
from pruneport.export.precisions.quantiser import Ranges, measure_ranges, quantised

__all__ = ["TimedForm"]

_SEED = 0  # of inputs: ranges change no latency, so any will do


class TimedForm:
    """Makes the file to time of fp32 files, and puts it beside them.

    Files whose graphs have the same names, as slices of one file do, share the ranges of the first one.

    Args:
        provider: Where it is timed.
        precision: In which.
    """

    def __init__(self, provider: ProviderName, precision: TimedPrecision) -> None:
        self._provider, self._precision = int8_provider(provider), precision
        self._names: tuple[str, ...] = ()
        self._ranges: Ranges | None = None

    def __call__(self, path: Path) -> Path:
        """The file to time.

        Raises:
            ExportError: int8 cannot be made of it.
            ModelError: It is no file to open.
        """
        if self._precision == "fp32":
            return path
        made = path.with_name(f"{path.stem}.timed.onnx")
        model = self._quantised(path) if self._precision == "int8" else _in_half(path)
        outside = path.with_name(path.name + DATA).is_file()
        made.with_name(made.name + DATA).unlink(missing_ok=True)
        onnx.save(model, str(made), save_as_external_data=outside, location=made.name + DATA)
        return made

    def _quantised(self, path: Path) -> onnx.ModelProto:
        names = tuple(output for node in read_onnx(path).graph.node for output in node.output)
        if self._ranges is None or names != self._names:
            inputs = read_inputs(path)
            batch = inputs.batch if isinstance(inputs.batch, int) else 1
            drawn = zip(inputs.inputs, inputs.drawn(batch, _SEED), strict=True)
            part = OnePart({entry.name: values for entry, values in drawn})
            self._names, self._ranges = names, measure_ranges(path, part, self._provider)
        return quantised(path, self._ranges, self._provider)


def _in_half(path: Path) -> onnx.ModelProto:
    """The graph in fp16, between inputs and outputs of float32, as fp16 files that are shipped are.

    These are exported from a network in half, and differ in where casts stand at most.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16  # takes a while to import
    from onnxruntime.transformers.onnx_model import OnnxModel

    model = read_onnx(path)
    load_external_data_for_model(model, str(path.parent))
    half: onnx.ModelProto = convert_float_to_float16(model, keep_io_types=True)
    OnnxModel.graph_topological_sort(half.graph)  # its casts stand at the end
    return half
