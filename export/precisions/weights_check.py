"""Whether an int8 file is of the network that it says: its weights are those of the fp32 file, to half a step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from onnx import NodeProto, numpy_helper

from pruneport.arrays import AnyArray
from pruneport.export.onnx.onnx_reader import read_onnx

__all__ = ["check_weights"]

_HALF_A_STEP = 0.501  # the quotient that is rounded is one of float32
_QUANTISED = "_quantized"  # stands behind a weight's name in ONNX Runtime's quantiser
_LISTED = 5


def check_weights(int8: Path, fp32: Path) -> tuple[str, list[str]]:
    """Compare every weight of more than one dimension.

    Args:
        int8: The file in question.
        fp32: The file that it was made of.

    Returns:
        What was seen, as a sentence, and the names of weights that are others; none where all are the same.
    """
    theirs, ours = _constants(fp32), _constants(int8)
    readers = {node.input[0]: node for node in read_onnx(int8).graph.node if node.op_type == "DequantizeLinear"}
    wrong, quantised, floats = [], 0, 0
    for name, wanted in theirs.items():
        if wanted.ndim < 2 or wanted.dtype.kind != "f":
            continue
        stored = name + _QUANTISED
        if stored in ours and stored in readers:
            quantised += 1
            if not _same(wanted, ours[stored], readers[stored], ours):
                wrong.append(name)
        elif name in ours:
            floats += 1
            if not np.array_equal(wanted, ours[name]):
                wrong.append(name)
        else:
            wrong.append(name)
    said = f"{int8.name}: {quantised} weights are those of {fp32.name} to half a step of int8"
    return said + (f", {floats} are left in float" if floats else ""), wrong[:_LISTED]


def _same(wanted: AnyArray, stored: AnyArray, reader: NodeProto, constants: Mapping[str, AnyArray]) -> bool:
    """Whether whole numbers, less their zero point and times their scale, are a weight to half a step."""
    scale, zero = (constants.get(name) for name in (*reader.input[1:3], "")[:2])
    axis = next((entry.i for entry in reader.attribute if entry.name == "axis"), 1)
    if scale is None or stored.shape != wanted.shape or not -wanted.ndim <= axis < wanted.ndim:
        return False
    zero = np.zeros_like(scale) if zero is None else zero
    if scale.shape != zero.shape or scale.shape not in ((), (wanted.shape[axis],)):
        return False
    sizes = [-1 if place == axis % wanted.ndim else 1 for place in range(wanted.ndim)] if scale.ndim else ()
    steps, zeros = (part.astype(np.float64).reshape(sizes) for part in (scale, zero))
    distance = np.abs((stored.astype(np.float64) - zeros) * steps - wanted)
    return bool((distance <= _HALF_A_STEP * np.abs(steps)).all())


def _constants(path: Path) -> dict[str, AnyArray]:
    """Weights and constants by name."""
    model = read_onnx(path)
    folder = str(path.parent)
    found = {weight.name: numpy_helper.to_array(weight, folder) for weight in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    found[node.output[0]] = numpy_helper.to_array(attribute.t, folder)
    return found
