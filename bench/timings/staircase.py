"""The device's width step: where a layer's time goes up, found by sweeping the width of a convolution."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pruneport.arrays import FloatArray
from pruneport.bench.latency.timed_form import TimedForm
from pruneport.bench.latency.timer import clock_of, open_run, time_run, warm_up
from pruneport.bench.options import RuntimeOptions, TimedPrecision

__all__ = ["Staircase", "measure_staircase", "step_of"]

_WIDTHS = tuple(range(32, 129, 4))
_STEPS = (4, 8, 16, 32, 64)  # finer ones than the sweep has cost nothing to round to
_ENDS = 16  # channels of the input and the output
_SIZE = 28  # pixels
_ROUNDS, _WARMUP = 60, 2
_QUICK = 0.1  # quantile of the rounds: other programs only ever make a run longer
_FLAT = 0.1  # times that differ by less, as a share, tell no step
_BETTER = 0.8  # of the residual: a coarser step must explain so much more


@dataclass(frozen=True, kw_only=True)
class Staircase:
    """The widths between which a layer's time does not fall: multiples of these many channels.

    Attributes:
        convolution: Step of an ordinary convolution; None where its time hardly depends on the width.
        depthwise: Step of a depthwise one.
    """

    convolution: int | None
    depthwise: int | None


def measure_staircase(options: RuntimeOptions, batch: int, precision: TimedPrecision | None = None) -> Staircase:
    """Time small networks of two layers at many widths between them, in turns, and find the step of each kind.

    On the CPU it is a fact of the instruction set, and seen best by one thread's own time.

    Raises:
        ProviderError: The provider is not there, or does not run them.
    """
    if options.provider == "cpu":
        options = replace(options, threads=1)
    return Staircase(
        convolution=step_of(_WIDTHS, _sweep(options, batch, precision, depthwise=False)),
        depthwise=step_of(_WIDTHS, _sweep(options, batch, precision, depthwise=True)),
    )


def step_of(widths: Sequence[int], times_ms: Sequence[float]) -> int | None:
    """The step q whose staircase, time = α + β ceil(width / q) q + γ (where q does not divide it), fits best.

    Args:
        widths: Channels, all multiples of the finest step.
        times_ms: Of each.

    Returns:
        The step; None where the times hardly differ.
    """
    from scipy.optimize import nnls  # slow to import

    counts, times = np.asarray(widths, dtype=np.float64), np.asarray(times_ms, dtype=np.float64)
    if (times.max() - times.min()) / times.max() < _FLAT:
        return None
    found, least = None, np.inf
    for step in _STEPS:
        stairs: FloatArray = np.ceil(counts / step) * step
        matrix = np.column_stack([np.ones(len(counts)), stairs / counts.max(), counts % step > 0])
        residual = float(nnls(matrix / times[:, None], np.ones(len(times)))[1])
        if residual < _BETTER * least:
            found, least = step, residual
    return found


def _sweep(options: RuntimeOptions, batch: int, precision: TimedPrecision | None, *, depthwise: bool) -> list[float]:
    """A quick run's time in ms at each width."""
    options, clock = replace(options, warmup=_WARMUP, cuda_graph=False), clock_of(options)
    with tempfile.TemporaryDirectory() as folder:
        runs, form = [], TimedForm(options.provider, precision or "fp32")
        for width in _WIDTHS:
            path = Path(folder) / f"{width}.onnx"
            onnx.save(_network(width, depthwise=depthwise), path)
            runs.append(open_run(form(path), options, batch))
        warm_up(runs, options)
        samples = [[time_run(run).by(clock) for run in runs] for _ in range(_ROUNDS)]
    times_ms: list[float] = np.quantile(samples, _QUICK, axis=0).tolist()
    return times_ms


def _network(width: int, *, depthwise: bool) -> onnx.ModelProto:
    """Convolutions with this width between them; a depthwise one stands between two of kernel 1."""
    kernel = 1 if depthwise else 3
    layers = [(_ENDS, width, kernel, 1), (width, width, 3, width), (width, _ENDS, kernel, 1)]
    if not depthwise:
        del layers[1]
    generator = np.random.default_rng(0)
    nodes, weights, value = [], [], "x"
    for number, (inputs, outputs, size, groups) in enumerate(layers):
        shape = (outputs, inputs // groups, size, size)
        weights.append(numpy_helper.from_array(generator.standard_normal(shape, dtype=np.float32), f"w{number}"))
        pads = [size // 2] * 4
        last = number == len(layers) - 1
        nodes.append(helper.make_node("Conv", [value, f"w{number}"], [f"v{number}"], group=groups, pads=pads))
        nodes.append(helper.make_node("Relu", [f"v{number}"], ["y" if last else f"r{number}"]))
        value = f"r{number}"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", _ENDS, _SIZE, _SIZE]) for name in "xy"]
    graph = helper.make_graph(nodes, "staircase", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
