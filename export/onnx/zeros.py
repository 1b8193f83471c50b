"""What a dropped branch leaves in a graph, left out: zeros, what is computed of them, and additions of them."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["leave_out_zeros"]

_ZERO_AT_ZERO = frozenset(
    (
        "Abs", "AveragePool", "Cast", "Elu", "Erf", "Flatten", "Gelu", "GlobalAveragePool", "HardSwish",
        "Identity", "LeakyRelu", "MaxPool", "Neg", "ReduceMean", "Relu", "Reshape", "Selu", "Slice",
        "Softsign", "Squeeze", "Swish", "Tanh", "Transpose", "Unsqueeze",
    )
)  # fmt: skip
"""Operators whose outputs are zero where their first input is, whatever the others are."""


def leave_out_zeros(model: Any) -> None:
    """Take zeros out of sums, and then all that nothing reads any more.

    What additions of nothing leave behind is a second ReLU, right behind the first; it goes, too.
    """
    from onnxscript import ir, optimizer  # slow to import

    graph = model.graph
    zeros: set[Any] = set()
    for node in graph:
        if _is_zero(node, zeros):
            zeros.add(node.outputs[0])
        elif node.op_type == "Add":
            _leave_out(node, [value for value in node.inputs if value not in zeros], graph, ir)
        if node.op_type == "Relu" and (before := node.inputs[0].producer()) is not None and before.op_type == "Relu":
            _leave_out(node, [node.inputs[0]], graph, ir)
    optimizer.remove_unused_nodes(model)


def _is_zero(node: Any, zeros: set[Any]) -> bool:
    """Whether a node's first output is zero everywhere."""
    known = [value in zeros for value in node.inputs]
    if node.op_type == "Expand":
        return known[0] or _is_constant_zero(node.inputs[0])
    if node.op_type in _ZERO_AT_ZERO:
        return known[0]
    if node.op_type == "Clip":
        return known[0] and _holds_zero(node)
    return any(known) if node.op_type == "Mul" else node.op_type == "Add" and all(known)


def _is_constant_zero(value: Any) -> bool:
    from onnxscript import ir  # slow to import

    tensor = ir.convenience.get_const_tensor(value)
    return tensor is not None and not np.any(tensor.numpy())


def _holds_zero(node: Any) -> bool:
    """Whether zero lies within the limits of a Clip."""
    from onnxscript import ir  # slow to import

    limits = [None if value is None else ir.convenience.get_const_tensor(value) for value in node.inputs[1:]]
    if any(tensor is None and value is not None for tensor, value in zip(limits, node.inputs[1:], strict=True)):
        return False
    low, high = ([*limits, None, None])[:2]
    return bool((low is None or low.numpy() <= 0) and (high is None or high.numpy() >= 0))


def _leave_out(node: Any, left: list[Any], graph: Any, ir: Any) -> None:
    """Let what reads a node's output read the one input that is left, if that has the same shape."""
    output = node.outputs[0]
    if len(left) != 1 or output in graph.outputs or not _alike(left[0], output):
        return
    ir.convenience.replace_all_uses_with(output, left[0])


def _alike(one: Any, other: Any) -> bool:
    """Whether two values have the same known shape."""
    if one.shape is None or other.shape is None:
        return False
    return [str(size) for size in one.shape] == [str(size) for size in other.shape]
