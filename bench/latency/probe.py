"""Whether a provider computes: one convolution, bound and run, before any long work."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pruneport.bench.latency.sessions import open_session
from pruneport.bench.options import RuntimeOptions
from pruneport.errors import ProviderError

__all__ = ["probe"]

_CHANNELS, _SIZE, _KERNEL = 8, 8, 3
_RIGHT = _CHANNELS * _KERNEL**2  # every output of ones on ones, exact in every precision


def probe(options: RuntimeOptions) -> None:
    """Run a convolution twice, as networks are run: cuDNN is loaded by the first, a CUDA graph replayed by the second.

    Raises:
        ProviderError: The provider is not there, does not start, or does not compute it.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.onnx"
        onnx.save(_network(), path)
        run = open_session(path, options, batch=1).bind(np.ones((1, _CHANNELS, _SIZE, _SIZE), np.float32))
        try:
            run.run()
            (output,) = run.outputs()
        except Exception as error:  # ONNX Runtime's errors share no other base
            raise ProviderError(f"The provider '{options.provider}' fails at a convolution: {error}") from error
    if not np.array_equal(output, np.full_like(output, _RIGHT)):
        raise ProviderError(
            f"The provider '{options.provider}' computes {output.min():g} to {output.max():g} in a convolution of ones "
            f"where {_RIGHT} is right. Check the driver, and the CUDA and cuDNN libraries."
        )


def _network() -> onnx.ModelProto:
    """A convolution of ones."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", _CHANNELS, None, None]) for name in "xy"]
    ends[0] = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", _CHANNELS, _SIZE, _SIZE])
    weight = numpy_helper.from_array(np.ones((_CHANNELS, _CHANNELS, _KERNEL, _KERNEL), np.float32), "w")
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="convolution")
    graph = helper.make_graph([node], "probe", ends[:1], ends[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
