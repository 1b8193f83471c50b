"""Operators that combine tensors entry by entry: channels at the same place are removed together (see ``tracer``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pruneport.compress.graph.tracing.channel_ids import ChannelLabels
from pruneport.compress.graph.tracing.tracer import OpCall, Tracer
from pruneport.compress.sizes.arguments import nested_tensors

__all__ = ["MEETS_FIXED", "combine", "concatenate", "meeting", "put", "share", "stack", "write"]

MEETS_FIXED = "{} combines its channels with values whose width does not follow any layer"


def combine(tracer: Tracer, call: OpCall) -> None:
    """Entries at the same place of the broadcast shape, one by one."""
    tensors = call.inputs
    for out in call.outputs:
        tracer.give(out, meeting(tracer, tensors, out.shape, out))
        view = next((view for one in tensors if one.shape == out.shape and (view := tracer.weight_view(one))), None)
        if view is not None:  # a weight that is computed anew, entry by entry
            tracer.give_view(out, replace(view, moved=False))
    if call.name.startswith(("add", "sub")):
        _note_added(tracer, tensors, call.outputs[0].shape)


def _note_added(tracer: Tracer, tensors: Sequence[Tensor], shape: Sequence[int]) -> None:
    """Sums of channels that were made in different places; x + f(x) with x's own channels is no residual stream,
    and neither are the attention heads of logits and of a bias.
    """
    wide = [labels for tensor in tensors for labels, _ in _broadcast(tracer, tensor, shape)[1]]
    made = [labels for labels in wide if not labels.unwrapped]
    for labels in made:
        for dim in tracer.varies(labels):
            for bias in wide:
                if bias.unwrapped and dim in tracer.varies(bias):
                    tracer.notes.bias(labels.line(dim), bias.rows(dim))
            others = [term for term in made if term is not labels and tracer.varies(term) == (dim,)]
            unlike = any(not torch.equal(labels.line(dim), term.line(dim)) for term in others)
            if unlike and not tracer.are_attention_heads(labels.line(dim)):
                tracer.notes.added(labels.compact())


def meeting(
    tracer: Tracer, tensors: Sequence[Tensor], shape: Sequence[int], output: Tensor | None = None
) -> list[ChannelLabels]:
    """Join what meets at the same place of the broadcast shape; return the labels of the result.

    Where several tensors are of a single channel each, one is shown; ``output`` depends on the others, too.
    """
    wide = [_broadcast(tracer, tensor, shape) for tensor in tensors if tensor.ndim and not tracer.owned(tensor)]
    result: dict[tuple[int, ...], ChannelLabels] = {}
    for number, (_, here) in enumerate(wide):
        for labels, dims in here:
            if labels.unwrapped:
                continue
            for place, (sizes, others) in enumerate(wide):
                if place != number and dims and sizes[dims[0]] > 1:
                    _meet(tracer, labels, dims[0], others)
            shown = result.setdefault(dims, labels)
            if not dims and shown is not labels and output is not None:
                tracer.lose([output], labels.compact())
    unwrapped = [labels for _, here in wide for labels, _ in here if labels.unwrapped]
    return list(result.values()) or unwrapped


def _broadcast(
    tracer: Tracer, tensor: Tensor, shape: Sequence[int]
) -> tuple[list[int], list[tuple[ChannelLabels, tuple[int, ...]]]]:
    """The tensor's own sizes, one where it was expanded, and its labels, on the dimensions of the result."""
    stored = [1 if stride == 0 else size for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]
    sizes = [1] * (len(shape) - tensor.ndim) + stored
    given = tracer.labels_of(tensor)
    expanded = [ChannelLabels(labels.ids.expand(tuple(shape)), labels.unwrapped) for labels in given]
    return sizes, [(labels, tracer.varies(labels)) for labels in expanded]


def _meet(
    tracer: Tracer, labels: ChannelLabels, dim: int, others: Sequence[tuple[ChannelLabels, tuple[int, ...]]]
) -> None:
    """Join the channels of one tensor with those at the same places of the others; without any, they must stay."""
    line, partners = labels.line(dim), 0
    for partner, dims in others:
        if partner.unwrapped and dim in dims:
            rows = partner.rows(dim)
            tracer.channel_ids.join(line[:, None], rows)
        elif not partner.unwrapped and dims == (dim,):
            tracer.channel_ids.join(line, partner.line(dim))
            alone = torch.cat([line[partner.line(dim) == 0], partner.line(dim)[line == 0]])
            tracer.notes.unprunable(alone, MEETS_FIXED.format(tracer.here))
        else:
            continue
        partners += 1
    if not partners:
        tracer.notes.unprunable(line, MEETS_FIXED.format(tracer.here))


def concatenate(tracer: Tracer, call: OpCall) -> None:
    """Channels side by side stay what they are; all other dimensions are shared."""
    parts = [part for part in nested_tensors(call.args) if part.numel()]
    dim = call.argument("dim", 0) % call.output.ndim
    tracer.give(call.output, [])
    if _only_unwrapped(tracer, parts, lambda ids: torch.cat(ids, dim), call.output):
        return
    along = [tracer.labels_along(part, dim) for part in parts]
    if any(labels is not None and not labels.unwrapped for labels in along):
        lines = [
            torch.zeros(part.shape[dim], dtype=torch.long) if labels is None or labels.unwrapped else labels.line(dim)
            for part, labels in zip(parts, along, strict=True)
        ]
        tracer.give_line(call.output, dim, torch.cat(lines))
    for shared in range(call.output.ndim):
        if shared != dim:
            share(tracer, parts, shared, call.output, shared)


def stack(tracer: Tracer, call: OpCall) -> None:
    """A new dimension; all others are shared."""
    parts = nested_tensors(call.args)
    dim = call.argument("dim", 0) % call.output.ndim
    tracer.give(call.output, [])
    if not _only_unwrapped(tracer, parts, lambda ids: torch.stack(ids, dim), call.output):
        for before in range(call.output.ndim - 1):
            share(tracer, parts, before, call.output, before + (before >= dim))


def _only_unwrapped(
    tracer: Tracer, parts: Sequence[Tensor], joined: Callable[[list[Tensor]], Tensor], output: Tensor
) -> bool:
    """Whether there are only unwrapped parameters' entries, which are then moved."""
    firsts = [next(iter(tracer.labels_of(part)), None) for part in parts]
    known = [labels for labels in firsts if labels is not None]
    if not known or not all(labels.unwrapped for part in parts for labels in tracer.labels_of(part)):
        return False
    ids = [
        torch.zeros(part.shape, dtype=torch.long) if labels is None else labels.ids
        for part, labels in zip(parts, firsts, strict=True)
    ]
    tracer.give(output, [ChannelLabels(joined(ids), unwrapped=True)])
    return True


def share(tracer: Tracer, parts: Sequence[Tensor], dim: int, output: Tensor, out_dim: int) -> None:
    """Parts side by side have the same sizes on the other dimensions: what is there goes together."""
    stored = [part for part in parts if part.shape[dim] > 1 and part.stride(dim)]  # the others were expanded
    along = [tracer.labels_along(part, dim) for part in stored]
    first = next((labels for labels in along if labels is not None and not labels.unwrapped), None)
    if first is None:
        return
    line = first.line(dim)
    if None in along:
        for labels in along:
            if labels is not None and not labels.unwrapped:
                tracer.notes.unprunable(labels.line(dim), MEETS_FIXED.format(tracer.here))
        return
    tracer.give_line(output, out_dim, line)
    for labels in along:
        if labels is not None:
            tracer.channel_ids.join(line[:, None], labels.rows(dim))


def write(tracer: Tracer, call: OpCall) -> None:
    """Into another tensor: understood where that is read as a whole, channel by channel."""
    target, source = call.args[0], call.args[1]
    if tracer.labels_of(target):
        tracer.give(call.output, meeting(tracer, [target, source], target.shape))
    elif isinstance(source, Tensor):
        tracer.give(call.output, meeting(tracer, [source], target.shape))
        for labels in tracer.labels_of(call.output) if target._base is not None else ():
            if not labels.unwrapped and not _place(tracer, target, labels):
                tracer.notes.unprunable(labels.compact(), f"{tracer.here} writes its channels into a slice")
                tracer.lose([target._base], labels.compact())


def _place(tracer: Tracer, target: Tensor, labels: ChannelLabels) -> bool:
    """Give the tensor that ``target`` is a part of the channels that are written there, at all places; False where it
    has other channels beside them.
    """
    whole, dims = target._base, tracer.varies(labels)
    assert whole is not None
    along = (target.shape[dims[0]], target.stride(dims[0])) if len(dims) == 1 else (0, 0)
    dim = next((dim for dim in range(whole.ndim) if (whole.shape[dim], whole.stride(dim)) == along), None)
    if dim is None:
        return False
    tracer.give_line(whole, dim, labels.line(dims[0]))
    return True


def put(tracer: Tracer, call: OpCall) -> None:
    """Rows written into another tensor at places of its first dimension: their channels are the tensor's."""
    target, indices, values = call.args[:3]
    whole = target._base is None and len(indices) == 1 and values.ndim == target.ndim
    for labels in tracer.labels_of(values):
        dims = tracer.varies(labels)
        if labels.unwrapped or not dims:
            continue
        if not whole or 0 in dims:
            tracer.notes.unprunable(
                labels.compact(), f"{tracer.here} writes its channels to places that other values say"
            )
            continue
        there, line = tracer.labels_along(target, dims[0]), labels.line(dims[0])
        if there is None:
            tracer.give_line(target, dims[0], line)
        else:
            _meet(tracer, labels, dims[0], [(there, tracer.varies(there))])
