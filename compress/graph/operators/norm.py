"""Norms and activations with a number per channel: their channels go with those they read (see ``tracer``)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from pruneport.compress.graph.operators.layer_channels import note_applied_along, pass_on, read_channels
from pruneport.compress.graph.tracing.tracer import OpCall, Operation, Tracer

__all__ = ["norm", "prelu"]


def norm(kinds: tuple[type[nn.Module], ...], dim: int, averaging: bool = False) -> Operation:
    """What a norm does along ``dim``: its own channels go on; ``averaging`` where it mixes them."""
    return partial(_normalise, kinds, dim, averaging)


def _normalise(kinds: tuple[type[nn.Module], ...], dim: int, averaging: bool, tracer: Tracer, call: OpCall) -> None:
    """What ``norm`` says, of one call."""
    source, out = call.args[0], call.outputs[0]
    weight = call.argument("weight")
    if tracer.owned(source):
        tracer.notes.standardised(tracer.place)
        view = tracer.weight_view(source)
        if view is not None:
            tracer.give_view(out, replace(view, moved=False))
        return
    name = tracer.layer_of(weight, kinds)
    tracer.give(out, [])
    over = call.argument("normalized_shape", [0])
    labels = tracer.labels_along(source, dim) if source.ndim else None
    if len(over) > 1:
        for mixed in tracer.labels_of(source):
            tracer.notes.unprunable(mixed.compact(), f"{tracer.here} normalises over channels and places at once")
        return
    pass_on(tracer, source, out, dim)
    if name is not None:
        note_applied_along(tracer, name, out)
    if labels is None:
        return
    if averaging:
        tracer.notes.normalised_over(labels.compact())
    if name is None:
        for tensor in (weight, call.argument("bias")):
            if tensor is not None:
                read_channels(tracer, source, dim, partial(_entries, tracer, tensor), tracer.here)
        tracer.give_line(out, dim % source.ndim, labels.line(dim))
        return
    channels = _normed(tracer, name, labels.line(dim))
    read_channels(tracer, source, dim, lambda: channels, name)
    tracer.give_line(out, dim % source.ndim, channels)


def _normed(tracer: Tracer, name: str, line: Tensor) -> Tensor:
    """A norm's channel ids along ``line``; torch's instance norms lay the channels of all images side by side."""
    width = getattr(tracer.modules[name], "num_features", len(line))
    if len(line) > width and len(line) % width == 0 and (images := line.reshape(-1, width)).eq(images[:1]).all():
        return tracer.channel_ids.register((name, "channels"), width).repeat(len(images))
    return tracer.channel_ids.register((name, "channels"), len(line))


def _entries(tracer: Tracer, tensor: Tensor) -> Tensor:
    given = tracer.labels_of(tensor)
    return given[0].ids.flatten() if given else torch.zeros(tensor.numel(), dtype=torch.long)


def prelu(tracer: Tracer, call: OpCall) -> None:
    """One slope a channel, or one for all."""
    source, weight = call.args[0], call.args[1]
    tracer.give(call.output, tracer.labels_of(source))
    name = tracer.layer_of(weight, (nn.PReLU,))
    if name is not None and weight.numel() > 1:
        read_channels(tracer, source, 1, lambda: tracer.channel_ids.register((name, "channels"), weight.numel()), name)
