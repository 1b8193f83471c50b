"""Operations in which tensors meet: what lies at the same place stands or falls together (see ``tracer``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pruneport.compress.graph.tracer import Flow, Map
from pruneport.compress.sizes.arguments import argument, operator_name, tensors_in

__all__ = ["MEETS_FIXED", "combine", "concatenate", "meeting", "put", "share", "stack", "write"]

MEETS_FIXED = "{} combines its channels with values whose width does not follow any layer"


def combine(flow: Flow, function: Any, args: Any, kwargs: Any, output: Any) -> None:
    """Entries at the same place of the broadcast shape, one by one."""
    tensors = tensors_in((args, kwargs))
    for out in tensors_in(output):
        flow.give(out, meeting(flow, tensors, out.shape, out))
        view = next((view for one in tensors if one.shape == out.shape and (view := flow.weight_view(one))), None)
        if view is not None:  # a weight that is computed anew, entry by entry
            flow.give_view(out, replace(view, moved=False))
    if operator_name(function).startswith(("add", "sub")):
        _note_added(flow, tensors, tensors_in(output)[0].shape)


def _note_added(flow: Flow, tensors: Sequence[Tensor], shape: Sequence[int]) -> None:
    """Sums of channels that were made in different places; x + f(x) with x's own channels is no residual stream,
    and neither are the heads of logits and of a bias.
    """
    wide = [entry for tensor in tensors for entry, _ in _broadcast(flow, tensor, shape)[1]]
    maps = [entry for entry in wide if not entry.bare]
    for entry in maps:
        for dim in flow.varies(entry):
            flow.biases += [
                (entry.line(dim), bias.rows(dim)) for bias in wide if bias.bare and dim in flow.varies(bias)
            ]
            others = [other for other in maps if other is not entry and flow.varies(other) == (dim,)]
            unlike = any(not torch.equal(entry.line(dim), other.line(dim)) for other in others)
            if unlike and not flow.is_heads(entry.line(dim)):
                flow.added.append(entry.compact())


def meeting(flow: Flow, tensors: Sequence[Tensor], shape: Sequence[int], output: Tensor | None = None) -> list[Map]:
    """Join what meets at the same place of the broadcast shape; return the maps of the result.

    Where several tensors are of a single channel each, one is shown; ``output`` depends on the others, too.
    """
    wide = [_broadcast(flow, tensor, shape) for tensor in tensors if tensor.ndim and not flow.owned(tensor)]
    result: dict[tuple[int, ...], Map] = {}
    for number, (_, maps) in enumerate(wide):
        for entry, dims in maps:
            if entry.bare:
                continue
            for other, (sizes, others) in enumerate(wide):
                if other != number and dims and sizes[dims[0]] > 1:
                    _meet(flow, entry, dims[0], others)
            shown = result.setdefault(dims, entry)
            if not dims and shown is not entry and output is not None:
                flow.lose([output], entry.compact())
    bare = [entry for _, maps in wide for entry, _ in maps if entry.bare]
    return list(result.values()) or bare


def _broadcast(flow: Flow, tensor: Tensor, shape: Sequence[int]) -> tuple[list[int], list[tuple[Map, tuple[int, ...]]]]:
    """The tensor's own sizes, one where it was expanded, and its maps, on the dimensions of the result."""
    own = [1 if stride == 0 else size for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]
    sizes = [1] * (len(shape) - tensor.ndim) + own
    maps = [Map(entry.labels.expand(tuple(shape)), entry.bare) for entry in flow.maps(tensor)]
    return sizes, [(entry, flow.varies(entry)) for entry in maps]


def _meet(flow: Flow, entry: Map, dim: int, others: Sequence[tuple[Map, tuple[int, ...]]]) -> None:
    line, partners = entry.line(dim), 0
    for other, dims in others:
        if other.bare and dim in dims:
            rows = other.rows(dim)
            flow.elements.join(line[:, None], rows)
        elif not other.bare and dims == (dim,):
            flow.elements.join(line, other.line(dim))
            alone = torch.cat([line[other.line(dim) == 0], other.line(dim)[line == 0]])
            flow.break_off(alone, MEETS_FIXED.format(flow.here))
        else:
            continue
        partners += 1
    if not partners:
        flow.break_off(line, MEETS_FIXED.format(flow.here))


def concatenate(flow: Flow, function: Any, args: Any, kwargs: Any, output: Any) -> None:
    """Channels side by side stay what they are; all other dimensions are shared."""
    parts = [part for part in tensors_in(args) if part.numel()]
    dim = argument(function, args, kwargs, "dim", 0) % output.ndim
    flow.give(output, [])
    if _only_bare(flow, parts, lambda labels: torch.cat(labels, dim), output):
        return
    found = [flow.map_along(part, dim) for part in parts]
    if any(entry is not None and not entry.bare for entry in found):
        lines = [
            torch.zeros(part.shape[dim], dtype=torch.long) if entry is None or entry.bare else entry.line(dim)
            for part, entry in zip(parts, found, strict=True)
        ]
        flow.give_line(output, dim, torch.cat(lines))
    for other in range(output.ndim):
        if other != dim:
            share(flow, parts, other, output, other)


def stack(flow: Flow, function: Any, args: Any, kwargs: Any, output: Any) -> None:
    """A new dimension; all others are shared."""
    parts = tensors_in(args)
    dim = argument(function, args, kwargs, "dim", 0) % output.ndim
    flow.give(output, [])
    if not _only_bare(flow, parts, lambda labels: torch.stack(labels, dim), output):
        for own in range(output.ndim - 1):
            share(flow, parts, own, output, own + (own >= dim))


def _only_bare(flow: Flow, parts: Sequence[Tensor], joined: Callable[[list[Tensor]], Tensor], output: Tensor) -> bool:
    """Whether there are only bare parameters' entries, which are then moved."""
    maps = [next(iter(flow.maps(part)), None) for part in parts]
    known = [entry for entry in maps if entry is not None]
    if not known or not all(entry.bare for part in parts for entry in flow.maps(part)):
        return False
    labels = [
        torch.zeros(part.shape, dtype=torch.long) if entry is None else entry.labels
        for part, entry in zip(parts, maps, strict=True)
    ]
    flow.give(output, [Map(joined(labels), bare=True)])
    return True


def share(flow: Flow, parts: Sequence[Tensor], dim: int, output: Tensor, out_dim: int) -> None:
    """Parts side by side have the same sizes on the other dimensions: what is there goes together."""
    own = [part for part in parts if part.shape[dim] > 1 and part.stride(dim)]  # the others were expanded
    found = [flow.map_along(part, dim) for part in own]
    first = next((entry for entry in found if entry is not None and not entry.bare), None)
    if first is None:
        return
    line = first.line(dim)
    if None in found:
        for entry in found:
            if entry is not None and not entry.bare:
                flow.break_off(entry.line(dim), MEETS_FIXED.format(flow.here))
        return
    flow.give_line(output, out_dim, line)
    for entry in found:
        if entry is not None:
            flow.elements.join(line[:, None], entry.rows(dim))


def write(flow: Flow, function: Any, args: Any, kwargs: Any, output: Any) -> None:
    """Into another tensor: understood where that is read as a whole, channel by channel."""
    target, source = args[0], args[1]
    if flow.maps(target):
        flow.give(output, meeting(flow, [target, source], target.shape))
    elif isinstance(source, Tensor):
        flow.give(output, meeting(flow, [source], target.shape))
        for entry in flow.maps(output) if target._base is not None else ():
            if not entry.bare and not _place(flow, target, entry):
                flow.break_off(entry.compact(), f"{flow.here} writes its channels into a slice")
                flow.lose([target._base], entry.compact())


def _place(flow: Flow, target: Tensor, entry: Map) -> bool:
    """Give the tensor that ``target`` is a part of the channels that are written there, at all places; False where it
    has other channels beside them.
    """
    whole, dims = target._base, flow.varies(entry)
    assert whole is not None
    along = (target.shape[dims[0]], target.stride(dims[0])) if len(dims) == 1 else (0, 0)
    dim = next((dim for dim in range(whole.ndim) if (whole.shape[dim], whole.stride(dim)) == along), None)
    if dim is None:
        return False
    flow.give_line(whole, dim, entry.line(dims[0]))
    return True


def put(flow: Flow, function: Any, args: Any, kwargs: Any, output: Any) -> None:
    """Rows written into another tensor at places of its first dimension: their channels are the tensor's."""
    target, indices, values = args[:3]
    whole = target._base is None and len(indices) == 1 and values.ndim == target.ndim
    for entry in flow.maps(values):
        dims = flow.varies(entry)
        if entry.bare or not dims:
            continue
        if not whole or 0 in dims:
            flow.break_off(entry.compact(), f"{flow.here} writes its channels to places that other values say")
            continue
        there, line = flow.map_along(target, dims[0]), entry.line(dims[0])
        if there is None:
            flow.give_line(target, dims[0], line)
        else:
            _meet(flow, entry, dims[0], [(there, flow.varies(there))])
