"""What is changed before and after torch's exporter, so that its file runs and says what torch says."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["PlainAttention", "leave_out_weight_info", "part_pads_from_pools"]


def leave_out_weight_info(graph: Any) -> None:
    """Say nothing of the weights' shapes besides the weights.

    onnxscript writes each weight's shape a second time, as if it were computed. Tools that change weights, such as
    ONNX Runtime's quantiser, which transposes them, do not look there; the two then contradict each other.
    """
    for weight in graph.initializers.values():
        weight.shape = weight.type = None
        weight.metadata_props.clear()  # with any of it, an entry without a type is written


def part_pads_from_pools(graph: Any) -> None:
    """Put a reshape to the same shape, which costs nothing, between a padding and a maximum pooling.

    ONNX Runtime makes one node of the two, whose padding never is the largest value, whatever it was: timm's BiT pads
    with zeros, which are larger than what is negative.
    """
    from onnxscript import ir  # slow to import

    for pool in list(graph.all_nodes()):
        padding = pool.inputs[0].producer() if pool.op_type == "MaxPool" and pool.inputs[0] is not None else None
        if padding is not None and padding.op_type == "Pad":
            sizes = [0] * (2 + len(pool.attributes["kernel_shape"].as_ints()))  # 0: the size that is there
            shape = ir.node("Constant", inputs=[], attributes={"value_ints": sizes})
            same = ir.node("Reshape", inputs=[pool.inputs[0], shape.outputs[0]])
            pool.graph.insert_before(pool, [shape, same])
            pool.replace_input_with(0, same.outputs[0])


class PlainAttention(TorchFunctionMode):
    """Gives attention, and its mask, the dimensions (batch, attention heads, places, width) that the exporter knows.

    Its result is copied: the layout that fused attention returns is not the one that the exporter's has.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        call = _attend if function is F.scaled_dot_product_attention else function
        return call(*args, **(kwargs or {}))


def _attend(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **named: Any
) -> Any:
    """Attention of queries (…, L, E), keys (…, S, E) and values (…, S, V); the mask broadcasts to (…, L, S)."""
    lead = query.shape[:-2]
    if attn_mask is not None and attn_mask.ndim > 2:
        attn_mask = _four(attn_mask.expand(*lead, *attn_mask.shape[-2:]))
    attended = F.scaled_dot_product_attention(_four(query), _four(key), _four(value), attn_mask, *args, **named)
    return attended.reshape(*lead, *attended.shape[-2:]).clone(memory_format=torch.contiguous_format)


def _four(part: Tensor) -> Tensor:
    """(…, places, width) as (batch, attention heads, places, width); without any, as of one."""
    return part.flatten(0, part.ndim - 4) if part.ndim > 3 else part.reshape(-1, 1, *part.shape[-2:])
