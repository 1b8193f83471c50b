"""fp16: whether a network's numbers fit in it, and how far its outputs may then differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pruneport.errors import ExportError
from pruneport.export.onnx.onnx_reader import read_onnx
from pruneport.models.inputs import ExampleInputs, run_on
from pruneport.models.outputs import FLOAT32, Tolerance, tensor_leaves

__all__ = ["check_half", "half_tolerance", "rounding_steps"]

_LARGEST = 65504.0  # of IEEE 754 binary16
_UNIT = 2.0**-11  # its unit roundoff: half of the distance from 1 to the next number
_DEVIATIONS = 4  # of a normal error: what one in 16,000 exceeds
_WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_EXACT = {
    *("Cast", "Clip", "Concat", "Constant", "ConstantOfShape", "Expand", "Flatten", "Gather", "Identity", "MaxPool"),
    *("Pad", "Relu", "Reshape", "Shape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze", "Where"),
}
"""Operators that give back numbers that they were given, whose rounding is none."""
_LISTED = 5


@torch.inference_mode()
def check_half(name: str, network: nn.Module, inputs: Iterable[ExampleInputs]) -> None:
    """Check that weights, and all that goes into and comes out of a layer, are within fp16's range.

    Args:
        name: ``dense`` or ``pruned``, for messages.
        network: In float32.
        inputs: Batches to look at.

    Raises:
        ExportError: Names the layers where they are not.
    """
    faults: dict[str, float] = {}

    def look(place: str, value: Any) -> None:
        for tensor in tensor_leaves(value):
            if tensor.is_floating_point() and tensor.numel():
                largest = float(tensor.abs().max())
                if not largest <= _LARGEST:
                    faults[place] = largest

    def looker(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def look_at(layer: nn.Module, given: Any, returned: Any) -> None:
            look(f"what goes into {path}", given)
            look(f"what {path} returns", returned)

        return look_at

    for key, tensor in (*network.named_parameters(), *network.named_buffers()):
        look(f"the weight {key}", tensor)
    handles = [
        layer.register_forward_hook(looker(path))
        for path, layer in network.named_modules()
        if path and not any(layer.children())
    ]
    try:
        for batch in inputs:
            look("the output", run_on(network, batch))
    finally:
        for handle in handles:
            handle.remove()
    if faults:
        shown = "; ".join(f"{place} reaches {largest:.3g}" for place, largest in list(faults.items())[:_LISTED])
        more = f"; and {len(faults) - _LISTED} more" if len(faults) > _LISTED else ""
        raise ExportError(
            f"`precisions` has fp16, whose largest number is {_LARGEST:g}, and in the {name} network {shown}{more}: "
            "it would become infinite. Leave out fp16, or let the network scale its numbers down there."
        )


def half_tolerance(path: Path) -> Tolerance:
    """How far the outputs of a network in fp16 may be from those in fp32, by the fp32 file.

    Each rounding to fp16 changes a number by 2^-11 of it at most. Independent ones add as the root of their number n,
    on the longest way through the network, and of thousands of outputs the worst is some four deviations off:
    4 x 2^-11 x sqrt(n) of the largest output.
    """
    return Tolerance(atol=FLOAT32.atol, rtol=_DEVIATIONS * _UNIT * math.sqrt(rounding_steps(path)))


def rounding_steps(path: Path) -> int:
    """How often numbers are rounded on the longest way through an ONNX file: results, and weights, which are one more.

    Operators that move or choose numbers round nothing.
    """
    steps: dict[str, int] = {}
    longest = 1  # the inputs
    for node in read_onnx(path).graph.node:  # a node comes after those that it reads
        own = 0 if node.op_type in _EXACT else 2 if node.op_type in _WEIGHTED else 1
        reached = own + max((steps.get(value, 1) for value in node.input), default=1)
        steps.update(dict.fromkeys(node.output, reached))
        longest = max(longest, reached)
    return longest
