"""Operations that move entries, and with them the map (see ``flow``)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pruneport.compress.aten import argument, operator_name, tensors_in
from pruneport.compress.attention import head_counts
from pruneport.compress.flow import Flow, Map

__all__ = ["embed", "move", "pad", "shape", "split"]


def move(flow: Flow, function: Any, args: Any, kwargs: Any, output: Any) -> None:
    """Entries go elsewhere, and the map with them."""
    tensor = next(iter(tensors_in((args, kwargs))))
    outputs = tensors_in(output)
    if flow.owned(tensor):
        for out in outputs:
            flow.note_transposed(out, tensor)
        return
    moved = [_moved(function, args, kwargs, tensor, entry) for entry in flow.maps(tensor)]
    for place, out in enumerate(outputs):
        flow.give(out, [Map(parts[place], entry.bare) for parts, entry in zip(moved, flow.maps(tensor), strict=True)])
        for entry in flow.maps(out):
            _settle(flow, entry)


def _moved(function: Any, args: Any, kwargs: Any, tensor: Tensor, entry: Map) -> list[Tensor]:
    name = operator_name(function)
    call = torch.ops.aten.reshape.default if name in ("view", "_unsafe_view") else function
    labels = entry.labels

    def stand_in(value: Any) -> Any:
        return labels if value is tensor else value

    drop = {"dtype", "layout", "device", "memory_format", "pin_memory"}
    args, kwargs = tree_map(stand_in, (args, {key: value for key, value in kwargs.items() if key not in drop}))
    try:
        moved = call(*args, **kwargs)
    except (RuntimeError, NotImplementedError):  # not written for integers; float64 holds them all
        labels = labels.double()
        args, kwargs = tree_map(lambda value: labels if value is entry.labels else value, (args, kwargs))
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


def shape(flow: Flow, function: Any, args: Any, kwargs: Any, output: Any) -> None:
    """A move to a shape that the forward asks for: the widths along channels are noted."""
    move(flow, function, args, kwargs, output)
    for out in tensors_in(output):
        for entry in flow.maps(out):
            dims = () if entry.bare else flow.varies(entry)
            if len(dims) == 1:
                flow.sized.append((flow.place, entry.line(dims[0])))


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
    shape(flow, function, args, kwargs, output)
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
