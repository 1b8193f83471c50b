"""Operators that move entries, and with them the labels (see ``tracer``)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pruneport.compress.graph.tracing.channel_ids import ChannelLabels
from pruneport.compress.graph.tracing.tracer import OpCall, Tracer
from pruneport.compress.resize.attention import attention_head_counts
from pruneport.compress.sizes.arguments import nested_tensors, operator_name

__all__ = [
    "channel_shuffle",
    "embed",
    "known",
    "move",
    "pad",
    "pick",
    "pixel_shuffle",
    "pixel_unshuffle",
    "share_memory",
    "split",
    "windows",
]


def move(tracer: Tracer, call: OpCall) -> None:
    """Entries go elsewhere, and their labels with them."""
    tensor = call.inputs[0]
    outputs = call.outputs
    view = tracer.weight_view(tensor)
    if view is not None:
        both = [_moved(call.function, call.args, call.kwargs, tensor, places) for places in (view.outputs, view.inputs)]
        for place, out in enumerate(outputs):
            tracer.give_view(out, replace(view, outputs=both[0][place], inputs=both[1][place]))
        return
    moved = [_moved(call.function, call.args, call.kwargs, tensor, labels.ids) for labels in tracer.labels_of(tensor)]
    for place, out in enumerate(outputs):
        tracer.give(
            out,
            [
                ChannelLabels(parts[place], labels.unwrapped)
                for parts, labels in zip(moved, tracer.labels_of(tensor), strict=True)
            ],
        )
        for labels in tracer.labels_of(out):
            _keep_one_dimension(tracer, labels)


def _moved(function: Any, args: Any, kwargs: Any, tensor: Tensor, labels: Tensor) -> list[Tensor]:
    """The labels after the operator has moved them as it moved the tensor."""
    name = operator_name(function)
    call = torch.ops.aten.reshape.default if name in ("view", "_unsafe_view") else function
    given = labels

    def stand_in(value: Any) -> Any:
        return labels if value is tensor else value

    drop = {"dtype", "layout", "device", "memory_format", "pin_memory"}
    kwargs = {key: value for key, value in kwargs.items() if key not in drop}
    if args and args[0] is tensor:
        args = (labels, *args[1:])  # a mask that is chosen from by itself chooses as ever
    else:
        args, kwargs = tree_map(stand_in, (args, kwargs))
    try:
        moved = call(*args, **kwargs)
    except (RuntimeError, NotImplementedError):  # not written for integers; float64 holds them all
        labels = labels.double()
        args, kwargs = tree_map(lambda value: labels if value is given else value, (args, kwargs))
        moved = call(*args, **kwargs)
    return [part.long() for part in nested_tensors(moved)]


def pad(tracer: Tracer, call: OpCall) -> None:
    """Places around the others belong to the same channels; channels beside the others belong to no layer."""
    source, sides = call.args[0], call.args[1]
    padded_labels = []
    for labels in tracer.labels_of(source):
        padded = {source.ndim - 1 - side // 2 for side, size in enumerate(sides) if size}
        dims = tracer.varies(labels)
        if not labels.unwrapped and not padded.intersection(dims):
            shape = [1 if dim not in dims else -1 for dim in range(source.ndim)]
            line = labels.line(dims[0]) if dims else labels.compact().flatten()[:1]
            padded_labels.append(ChannelLabels(line.reshape(shape).expand(call.output.shape)))
        else:
            padded_labels.append(ChannelLabels(nn.functional.pad(labels.ids, sides), labels.unwrapped))
    tracer.give(call.output, padded_labels)


def pick(tracer: Tracer, call: OpCall) -> None:
    """Entries chosen by other values: where none of a channel's entries is chosen, that depends on it all the same."""
    sources = [(tensor, labels.compact()) for tensor in call.inputs for labels in known(tracer, tensor)]
    move(tracer, call)
    outputs = call.outputs
    left = [torch.unique(labels.compact()) for out in outputs for labels in known(tracer, out)]
    for tensor, ids in sources:
        gone = torch.unique(ids)
        if tensor is call.args[0]:
            gone = gone[~torch.isin(gone, torch.cat([gone[:0], *left]))]
        tracer.lose(outputs, gone)


def known(tracer: Tracer, tensor: Tensor) -> list[ChannelLabels]:
    """The labels of a tensor's channels, without those of unwrapped parameters."""
    return [labels for labels in tracer.labels_of(tensor) if not labels.unwrapped]


def pixel_shuffle(tracer: Tracer, call: OpCall) -> None:
    """Channels of a run become one channel of more places: they go together."""

    def joined(line: Tensor, count: int) -> Tensor:
        runs = line.reshape(-1, count)
        tracer.channel_ids.join(runs[:, :1], runs)
        return runs[:, 0]

    _rearrange(tracer, call.args[0], call.output, joined, call.args[1] ** 2)


def channel_shuffle(tracer: Tracer, call: OpCall) -> None:
    """Equal runs of channels are dealt out: each of them must lose the same places."""
    source, runs = call.args[0], call.args[1]
    for entry in known(tracer, source):
        if tracer.varies(entry) == (1,):
            grid = entry.line(1).reshape(runs, -1)
            tracer.channel_ids.join(grid[:1], grid)
    move(tracer, call)


def pixel_unshuffle(tracer: Tracer, call: OpCall) -> None:
    """Places of a channel become a run of channels."""
    _rearrange(tracer, call.args[0], call.output, Tensor.repeat_interleave, call.args[1] ** 2)


def windows(tracer: Tracer, call: OpCall) -> None:
    """Overlapping windows: (B, C, H, W) to (B, C * places, windows)."""
    kernel = call.args[1]
    _rearrange(tracer, call.args[0], call.output, Tensor.repeat_interleave, kernel[0] * kernel[1])


def _rearrange(
    tracer: Tracer, source: Tensor, output: Tensor, rule: Callable[[Tensor, int], Tensor], count: int
) -> None:
    """Places become channels or the other way round, in runs of ``count``: ``rule`` makes the new line of channels."""
    dim = source.ndim - 3
    tracer.give(output, [])
    for labels in known(tracer, source):
        dims = tracer.varies(labels)
        if dims in ((), (dim,)):
            tracer.give_line(output, dim, rule(labels.line(dim).contiguous(), count))
        elif dims[0] < dim and len(dims) == 1:
            tracer.give_line(output, dims[0], labels.line(dims[0]))
        else:
            tracer.notes.unprunable(labels.compact(), f"{tracer.here} mixes its channels as if they were places")


def share_memory(tracer: Tracer, call: OpCall) -> None:
    """A tensor is given the memory of another, as by ``copy.copy``: it is the same, and so are its channels."""
    twin = tracer.same_memory(call.output)
    if twin is not None:
        tracer.give(call.output, tracer.labels_of(twin))
        tracer.carry([twin], [call.output])


def _keep_one_dimension(tracer: Tracer, labels: ChannelLabels) -> None:
    """Of several dimensions with channels, such as attention heads and width, keep the longest: the last of equals.

    A removal must leave a full grid, so what shares a place on the dimension that is kept goes together. Where whole
    attention heads go, it is the dimension as long as the module has them, which their width lies within.
    """
    dims = () if labels.unwrapped else tracer.varies(labels)
    if len(dims) > 1:
        counts = attention_head_counts(tracer.modules[tracer.place]) if tracer.whole_attention_heads else set()
        head_dims = [dim for dim in dims[:-1] if labels.ids.shape[dim] in counts]
        kept = head_dims[-1] if head_dims else max(dims, key=lambda dim: (labels.ids.shape[dim], dim))
        rows = labels.rows(kept)
        tracer.channel_ids.join(rows[:, :1], rows)
        if head_dims:
            tracer.notes.attention_heads(rows[:, 0])


def split(tracer: Tracer, call: OpCall) -> None:
    """Equal parts of a split without sizes stay equal."""
    move(tracer, call)
    dim = call.argument("dim", 0)
    parts = call.outputs
    lines = [
        found.line(dim)
        for part in parts
        if (found := tracer.labels_along(part, dim)) is not None and not found.unwrapped
    ]
    if len(lines) == len(parts) and len({len(line) for line in lines}) == 1:
        for line in lines[1:]:
            tracer.channel_ids.join(lines[0], line)


def embed(tracer: Tracer, call: OpCall) -> None:
    """Rows of a table, looked up."""
    table, rows = call.args[0], call.args[1]
    tracer.give(call.output, [ChannelLabels(labels.ids[rows], labels.unwrapped) for labels in tracer.labels_of(table)])
