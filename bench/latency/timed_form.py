"""The file that is timed for a latency target: the fp32 file of a network, or int8 made of it."""

from __future__ import annotations

from pathlib import Path

import onnx

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
        names = tuple(output for node in read_onnx(path).graph.node for output in node.output)
        if self._ranges is None or names != self._names:
            inputs = read_inputs(path)
            batch = inputs.batch if isinstance(inputs.batch, int) else 1
            drawn = zip(inputs.inputs, inputs.drawn(batch, _SEED), strict=True)
            part = OnePart({entry.name: values for entry, values in drawn})
            self._names, self._ranges = names, measure_ranges(path, part, self._provider)
        made = path.with_name(f"{path.stem}.timed.onnx")
        model = quantised(path, self._ranges, self._provider)
        outside = path.with_name(path.name + DATA).is_file()
        made.with_name(made.name + DATA).unlink(missing_ok=True)
        onnx.save(model, str(made), save_as_external_data=outside, location=made.name + DATA)
        return made
