"""Operations that move entries, and with them the map (see ``tracer``)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pruneport.compress.graph.tracer import Flow, Map
from pruneport.compress.resize.attention import head_counts
from pruneport.compress.sizes.arguments import argument, operator_name, tensors_in

__all__ = [
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


def move(flow: Flow, function: Any, args: Any, kwargs: Any, output: Any) -> None:
    """Entries go elsewhere, and the map with them."""
    tensor = next(iter(tensors_in((args, kwargs))))
    outputs = tensors_in(output)
    view = flow.weight_view(tensor)
    if view is not None:
        both = [_moved(function, args, kwargs, tensor, labels) for labels in (view.outputs, view.inputs)]
        for place, out in enumerate(outputs):
            flow.give_view(out, replace(view, outputs=both[0][place], inputs=both[1][place]))
        return
    moved = [_moved(function, args, kwargs, tensor, entry.labels) for entry in flow.maps(tensor)]
    for place, out in enumerate(outputs):
        flow.give(out, [Map(parts[place], entry.bare) for parts, entry in zip(moved, flow.maps(tensor), strict=True)])
        for entry in flow.maps(out):
            _settle(flow, entry)


def _moved(function: Any, args: Any, kwargs: Any, tensor: Tensor, labels: Tensor) -> list[Tensor]:
    name = operator_name(function)
    call = torch.ops.aten.reshape.default if name in ("view", "_unsafe_view") else function
    given = labels

    def stand_in(value: Any) -> Any:
        return labels if value is tensor else value

    drop = {"dtype", "layout", "device", "memory_format", "pin_memory"}
    args, kwargs = tree_map(stand_in, (args, {key: value for key, value in kwargs.items() if key not in drop}))
    try:
        moved = call(*args, **kwargs)
    except (RuntimeError, NotImplementedError):  # not written for integers; float64 holds them all
        labels = labels.double()
        args, kwargs = tree_map(lambda value: labels if value is given else value, (args, kwargs))
        moved = call(*args, **kwargs)
    return [part.long() for part in tensors_in(moved)]


def pad(flow: Flow, function: Any, args: Any, kwargs: Any, output: Any) -> None:
    """Places around the others belong to the same channels; channels beside the others belong to nobody."""
    source, sides = args[0], args[1]
    maps = []
    for entry in flow.maps(source):
        padded = {source.ndim - 1 - side // 2 for side, size in enumerate(sides) if size}
        dims = flow.varies(entry)
        if not entry.bare and not padded.intersection(dims):
            shape = [1 if dim not in dims else -1 for dim in range(source.ndim)]
            line = entry.line(dims[0]) if dims else entry.compact().flatten()[:1]
            maps.append(Map(line.reshape(shape).expand(output.shape)))
        else:
            maps.append(Map(nn.functional.pad(entry.labels, sides), entry.bare))
    flow.give(output, maps)


def pick(flow: Flow, function: Any, args: Any, kwargs: Any, output: Any) -> None:
    """Entries chosen by other values: where none of a channel's entries is chosen, that depends on it all the same."""
    sources = [(tensor, entry.compact()) for tensor in tensors_in((args, kwargs)) for entry in known(flow, tensor)]
    move(flow, function, args, kwargs, output)
    outputs = tensors_in(output)
    left = [torch.unique(entry.compact()) for out in outputs for entry in known(flow, out)]
    for tensor, labels in sources:
        gone = torch.unique(labels)
        if tensor is args[0]:
            gone = gone[~torch.isin(gone, torch.cat([gone[:0], *left]))]
        flow.lose(outputs, gone)


def known(flow: Flow, tensor: Tensor) -> list[Map]:
    """The maps of a tensor's channels, without those of bare parameters."""
    return [entry for entry in flow.maps(tensor) if not entry.bare]


def pixel_shuffle(flow: Flow, function: Any, args: Any, kwargs: Any, output: Any) -> None:
    """Channels of a run become one channel of more places: they go together."""

    def joined(line: Tensor, count: int) -> Tensor:
        runs = line.reshape(-1, count)
        flow.elements.join(runs[:, :1], runs)
        return runs[:, 0]

    _rearrange(flow, args[0], output, joined, args[1] ** 2)


def pixel_unshuffle(flow: Flow, function: Any, args: Any, kwargs: Any, output: Any) -> None:
    """Places of a channel become a run of channels."""
    _rearrange(flow, args[0], output, Tensor.repeat_interleave, args[1] ** 2)


def windows(flow: Flow, function: Any, args: Any, kwargs: Any, output: Any) -> None:
    """Overlapping windows: (B, C, H, W) to (B, C * places, windows)."""
    kernel = args[1]
    _rearrange(flow, args[0], output, Tensor.repeat_interleave, kernel[0] * kernel[1])


def _rearrange(flow: Flow, source: Tensor, output: Tensor, rule: Callable[[Tensor, int], Tensor], count: int) -> None:
    """Places become channels or the other way round, in runs of ``count``: ``rule`` makes the new line of channels."""
    dim = source.ndim - 3
    flow.give(output, [])
    for entry in known(flow, source):
        dims = flow.varies(entry)
        if dims in ((), (dim,)):
            flow.give_line(output, dim, rule(entry.line(dim).contiguous(), count))
        elif dims[0] < dim and len(dims) == 1:
            flow.give_line(output, dims[0], entry.line(dims[0]))
        else:
            flow.break_off(entry.compact(), f"{flow.here} mixes its channels as if they were places")


def share_memory(flow: Flow, function: Any, args: Any, kwargs: Any, output: Any) -> None:
    """A tensor is given the memory of another, as by ``copy.copy``: it is the same, and so are its channels."""
    twin = flow.same_memory(output)
    if twin is not None:
        flow.give(output, flow.maps(twin))
        flow.carry([twin], [output])


def _settle(flow: Flow, entry: Map) -> None:
    """Where channels lie on several dimensions, such as heads and their width, keep the longest: the last of equals.

    A removal must leave a full grid, so what shares a place on the dimension that is kept goes together. Where whole
    heads go, it is the dimension as long as the module has heads, which their width lies within.
    """
    dims = () if entry.bare else flow.varies(entry)
    if len(dims) > 1:
        counts = head_counts(flow.modules[flow.place]) if flow.whole_heads else set()
        heads = [dim for dim in dims[:-1] if entry.labels.shape[dim] in counts]
        kept = heads[-1] if heads else max(dims, key=lambda dim: (entry.labels.shape[dim], dim))
        rows = entry.rows(kept)
        flow.elements.join(rows[:, :1], rows)
        if heads:
            flow.heads.append(rows[:, 0])


def split(flow: Flow, function: Any, args: Any, kwargs: Any, output: Any) -> None:
    """Equal parts of a split without sizes stay equal."""
    move(flow, function, args, kwargs, output)
    dim = argument(function, args, kwargs, "dim", 0)
    parts = tensors_in(output)
    lines = [found.line(dim) for part in parts if (found := flow.map_along(part, dim)) is not None and not found.bare]
    if len(lines) == len(parts) and len({len(line) for line in lines}) == 1:
        for line in lines[1:]:
            flow.elements.join(lines[0], line)


def embed(flow: Flow, function: Any, args: Any, kwargs: Any, output: Any) -> None:
    """Rows of a table, looked up."""
    table, rows = args[0], args[1]
    flow.give(output, [Map(entry.labels[rows], entry.bare) for entry in flow.maps(table)])
