"""The convolutions of ``conv_widths.py`` as ONNX files of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["DTYPES", "LAYERS", "Layer", "write_layers"]

DTYPES: dict[str, np.dtype[Any]] = {"fp16": np.dtype(np.float16), "fp32": np.dtype(np.float32)}
LAYERS = 4
"""Of each kind in a file: one alone takes less time than its launch."""

_TYPES = {"fp16": TensorProto.FLOAT16, "fp32": TensorProto.FLOAT}
_SIZES = ((64, 56), (128, 28), (512, 14))  # height of the images up to a width, as in ResNet-50
_SEED = 0  # of weights


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A convolution, with what follows it, and the provider's options that differ from ours.

    Attributes:
        inputs: Channels.
        outputs: Channels.
        kernel: Height and width.
        stride: Of both.
        after: What follows: "", or "bias", "bias relu", "bias add relu".
        options: Of the provider.
    """

    inputs: int
    outputs: int
    kernel: int
    stride: int = 1
    after: str = ""
    options: Mapping[str, str]

    @property
    def size(self) -> int:
        """Height and width of its images."""
        return next(size for width, size in _SIZES if max(self.inputs, self.outputs) <= width)

    @property
    def made(self) -> int:
        """Height and width of what it makes of them."""
        return (self.size - 1) // self.stride + 1

    def macs(self, batch: int) -> int:
        """Multiply-accumulates of all layers in its file."""
        return LAYERS * batch * self.made**2 * self.inputs * self.outputs * self.kernel**2


def write_layers(layer: Layer, precision: str, batch: int, path: Path) -> None:
    """Write layers of one shape: in a row where both sides are equally wide, else side by side on the same images.

    Args:
        layer: Their shape.
        precision: fp16 or fp32, of inputs and outputs too.
        batch: Images of a run.
        path: Of the file.
    """
    in_a_row = layer.inputs == layer.outputs and layer.stride == 1
    made, given = [batch, layer.outputs, layer.made, layer.made], "x"
    nodes, weights, outputs = [], [], []
    for index in range(LAYERS):
        added = given if in_a_row else "z"
        weights += _weights(layer, DTYPES[precision], index)
        nodes += _steps(layer, index, given, added)
        outputs.append(f"y{index}")
        given = outputs[-1] if in_a_row else "x"

    def entry(name: str, shape: list[int]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, _TYPES[precision], shape)

    inputs = [entry("x", [batch, layer.inputs, layer.size, layer.size])]
    if "add" in layer.after and not in_a_row:
        inputs.append(entry("z", made))
    ends = [entry(name, made) for name in (outputs[-1:] if in_a_row else outputs)]
    graph = helper.make_graph(nodes, "layers", inputs, ends, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


def _weights(layer: Layer, dtype: np.dtype[Any], index: int) -> list[onnx.TensorProto]:
    """Of the layer with a number: the outputs of layers in a row stay of one size."""
    generator, scale = np.random.default_rng((_SEED, index)), (layer.inputs * layer.kernel**2) ** -0.5
    shapes = {"w": (layer.outputs, layer.inputs, layer.kernel, layer.kernel), "b": (layer.outputs,)}
    return [
        numpy_helper.from_array((generator.standard_normal(shape) * scale).astype(dtype), f"{name}{index}")
        for name, shape in shapes.items()
        if name == "w" or "bias" in layer.after
    ]


def _steps(layer: Layer, index: int, given: str, added: str) -> list[onnx.NodeProto]:
    """The convolution with a number and what follows it, from ``given`` to ``y`` and the number."""
    names = [given, f"w{index}", *([f"b{index}"] if "bias" in layer.after else [])]
    pads, strides = [layer.kernel // 2] * 4, [layer.stride] * 2
    nodes = [helper.make_node("Conv", names, [f"conv{index}"], pads=pads, strides=strides)]
    if "add" in layer.after:
        nodes.append(helper.make_node("Add", [f"conv{index}", added], [f"add{index}"]))
    if "relu" in layer.after:
        nodes.append(helper.make_node("Relu", [nodes[-1].output[0]], [f"relu{index}"]))
    nodes[-1].output[0] = f"y{index}"
    return nodes
