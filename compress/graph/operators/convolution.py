"""Convolutions: their inputs end and their outputs begin; depthwise ones pass channels on (see ``tracer``)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pruneport.compress.graph.operators.layer_channels import (
    CONVOLUTION,
    apply_reversed,
    known_lines,
    line_along,
    note_applied_along,
    pass_on,
    read_channels,
)
from pruneport.compress.graph.tracing.trace import Product
from pruneport.compress.graph.tracing.tracer import OpCall, Tracer
from pruneport.compress.resize.layer_types import removed_whole
from pruneport.compress.sizes.arguments import nested_tensors

__all__ = ["convolve"]


def convolve(tracer: Tracer, call: OpCall) -> None:
    """A convolution's inputs end and its outputs begin; depthwise ones go through."""
    source, weight = call.args[0], call.args[1]
    tracer.give(call.output, [])
    name = tracer.layer_of(weight, (CONVOLUTION,))
    bias = call.args[2] if len(call.args) > 2 else None
    if name is None:
        if call.argument("groups", 1) == source.shape[1] == call.output.shape[1]:
            _filter(tracer, source, weight, call.output, bool(call.argument("transposed", False)))
        else:
            _multiply_unwrapped(tracer, source)
            tracer.contract(call.output)
            _weigh(tracer, nested_tensors((weight, bias)), call.output)
        return
    layer: Any = tracer.modules[name]
    if bool(call.argument("transposed", False)) != layer.transposed:
        apply_reversed(tracer, name, source, 1, call.output, bias)
        return
    pass_on(
        tracer, source, call.output, 1, f"{name} mixes its channels as if they were places" if _mixes(layer) else ""
    )
    note_applied_along(tracer, name, call.output)
    depthwise = layer.groups > 1 and layer.groups == layer.in_channels
    if not depthwise:
        tracer.end(call.output)
        read_channels(tracer, source, 1, lambda: tracer.channel_ids.register((name, "in"), layer.in_channels), name)
        out = tracer.channel_ids.register((name, "out"), layer.out_channels)
        if (name, "in") in tracer.channel_ids.offsets and tracer.whole_channel_groups and removed_whole(layer):
            inputs = tracer.channel_ids.register((name, "in"), layer.in_channels).reshape(layer.groups, -1)
            both = torch.cat([inputs, out.reshape(layer.groups, -1)], 1)
            tracer.channel_ids.join(both[:, :1], both)
    else:
        out = tracer.channel_ids.register((name, "channels"), layer.out_channels)
        fed = read_channels(tracer, source, 1, lambda: out[:: layer.out_channels // layer.in_channels], name)
        if not fed:
            tracer.notes.unprunable(out, f"{name} reads channels whose width does not follow any layer")
        several = out.reshape(layer.in_channels, -1)
        tracer.channel_ids.join(several[:, :1], several)
    if bias is not None and not tracer.owned(bias):
        read_channels(tracer, bias, -1, lambda: out, name)
    if tracer.place != name:  # a forward that takes the layer's weight
        places = source if layer.transposed else call.output
        macs = places.numel() // places.shape[1] * weight.numel()
        tracer.add_product(Product(macs, known_lines((line_along(tracer.labels_along(source, 1), 1), out))))
    tracer.give_line(call.output, 1, out)


def _mixes(layer: Any) -> bool:
    """Whether a convolution's outputs depend on other places than their own."""
    return any(size != 1 for size in (*layer.kernel_size, *layer.stride)) or any(_numbers(layer.padding))


def _numbers(padding: Any) -> tuple[int, ...]:
    return () if isinstance(padding, str) else padding


def _filter(tracer: Tracer, source: Tensor, weight: Tensor, output: Tensor, transposed: bool) -> None:
    """Each channel filtered for itself, by a kernel that no layer owns (blurring, say)."""
    labels = tracer.labels_along(source, 1)
    if labels is None:
        return
    line = labels.line(1)
    kernel = tracer.labels_along(weight, 0)
    if kernel is not None:
        rows = kernel.rows(0)
        tracer.channel_ids.join(line[:, None], rows)
    places = source if transposed else output
    tracer.add_product(Product(places.numel() * weight[0].numel(), (line,)))
    tracer.give_line(output, 1, line)


def _multiply_unwrapped(tracer: Tracer, source: Tensor) -> None:
    """A product with a weight that was computed: the channels must stay."""
    labels = tracer.labels_along(source, 1)
    if labels is not None:
        tracer.notes.unprunable(labels.compact(), f"{tracer.here} multiplies its channels by a computed weight")


def _weigh(tracer: Tracer, weights: list[Tensor], output: Tensor) -> None:
    """Layers that make the weights of a convolution: its outputs depend on them."""
    for labels in (labels for weight in weights for labels in tracer.labels_of(weight) if not labels.unwrapped):
        tracer.notes.unprunable(labels.compact(), f"{tracer.here} takes its channels as the weights of a convolution")
        tracer.lose([output], labels.compact())
