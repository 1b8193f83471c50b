"""Attention: fused by an operator, and torch's layer (see ``tracer``)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pruneport.compress.graph.operators.elementwise import share
from pruneport.compress.graph.operators.layer_channels import known_lines, line_along, read_channels
from pruneport.compress.graph.tracing.channel_ids import ChannelLabels
from pruneport.compress.graph.tracing.trace import Product
from pruneport.compress.graph.tracing.tracer import OpCall, Tracer

__all__ = ["attend", "attend_by_layer"]


def attend(tracer: Tracer, call: OpCall) -> None:
    """Fused attention of queries (…, L, E), keys (…, S, E) and values (…, S, V)."""
    query, key, value = call.args[:3]
    out = call.outputs[0]
    tracer.give(out, [])
    for read in (query, key):
        for labels in tracer.labels_of(read):
            if not labels.unwrapped:
                tracer.lose([out], labels.compact())
    head_dims, last = range(query.ndim - 2), query.ndim - 1
    widths = tracer.labels_along(query, last), tracer.labels_along(key, last)
    query_width, key_width = widths
    if query_width is not None and key_width is not None and not query_width.unwrapped and not key_width.unwrapped:
        tracer.channel_ids.join(query_width.line(last), key_width.line(last))
    else:
        for width in widths:
            if width is not None:
                tracer.notes.unprunable(
                    width.compact(), f"{tracer.here} multiplies its channels by an unwrapped parameter"
                )
    for dim in head_dims:
        share(tracer, [query, key, value], dim, out, dim)
    value_width = tracer.labels_along(value, last)
    places = query.numel() // query.shape[-1] * key.shape[-2]
    lines = [line_along(tracer.labels_along(query, dim), dim) for dim in head_dims]
    for tensor, width in ((query, query_width), (value, value_width)):
        tracer.add_product(Product(places * tensor.shape[-1], known_lines((line_along(width, last), *lines))))
    if value_width is not None:
        tracer.give_line(out, last, value_width.line(last))
    mask = call.argument("attn_mask")
    mask = mask if mask is not None else call.argument("attn_bias")
    if isinstance(mask, Tensor):
        wide = mask.expand(*query.shape[:-2], *mask.shape[-2:])
        tracer.give(
            wide, [ChannelLabels(labels.ids.expand(wide.shape), labels.unwrapped) for labels in tracer.labels_of(mask)]
        )
        for dim in head_dims:
            of_mask = dim - (query.ndim - mask.ndim)
            if of_mask >= 0 and mask.shape[of_mask] > 1:
                share(tracer, [query, wide], dim, out, dim)


def attend_by_layer(tracer: Tracer, name: str, layer: Any, inputs: Any, output: Any) -> None:
    """Torch's attention layer: the embedding follows the stream; the attention heads go, or all lose the same width."""
    out, width = output[0], layer.embed_dim
    tracer.give(out, [])
    projected = [tensor.numel() // tensor.shape[-1] * width * tensor.shape[-1] for tensor in inputs[:3]]
    if layer.in_proj_weight is not None:
        axes = [(name, "in")] * 3
    else:  # keys and values have widths of their own
        axes = [(name, "in"), (f"{name}.k_proj_weight", "dim1"), (f"{name}.v_proj_weight", "dim1")]
    read = []
    for tensor, axis in zip(inputs[:3], axes, strict=True):
        size = tensor.shape[-1]
        read_channels(tracer, tensor, -1, lambda axis=axis, size=size: tracer.channel_ids.register(axis, size), name)  # type: ignore[misc]
        read.append(tracer.channel_ids.register(axis, size) if axis in tracer.channel_ids.offsets else None)
    rows = tracer.channel_ids.register((name, "channels"), 3 * width)
    made = tracer.channel_ids.register((f"{name}.out_proj", "out"), layer.out_proj.out_features)
    mixed = None
    if layer.in_proj_weight is None or layer.bias_k is not None or layer.add_zero_attn:
        tracer.notes.unprunable(rows, f"{name} has separate or additional projections, so its heads keep their width")
    else:
        mixed = tracer.channel_ids.register((f"{name}.out_proj", "in"), width)
        _join_attention_heads(tracer, name, torch.cat([rows, mixed]).reshape(4, layer.num_heads, -1))
    for macs, line in zip(projected, read, strict=True):
        tracer.add_product(Product(macs, known_lines((rows, line)), layer=name))
    tracer.add_product(Product(out.numel() * width, known_lines((mixed, made)), layer=name))
    tracer.give_line(out, out.ndim - 1, made)


def _join_attention_heads(tracer: Tracer, name: str, grid: Tensor) -> None:
    """Couple an attention layer's channels: (queries, keys, values and inputs of the projection; heads; width)."""
    if tracer.whole_attention_heads:
        by_head = grid.transpose(0, 1).flatten(1)
        tracer.channel_ids.join(by_head[:, :1], by_head)
        tracer.notes.attention_heads(by_head[:, 0])
        tracer.notes.counted(name, "num_heads", by_head[:, 0])
    else:
        tracer.channel_ids.join(grid[:1, :1], grid)
