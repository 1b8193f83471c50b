"""Operations that mix entries along a dimension: places, or channels (see ``tracer``)."""

from __future__ import annotations

from typing import Any

from pruneport.compress.graph.tracer import Flow, Map
from pruneport.compress.sizes.arguments import argument, operator_name, tensors_in

__all__ = ["fold", "glu", "normalise", "order", "pool", "reduce", "sample"]


def pool(flow: Flow, function: Any, args: Any, kwargs: Any, output: Any) -> None:
    """Places are mixed, each channel for itself: dimensions from the third on."""
    source, out = tensors_in((args, kwargs))[0], tensors_in(output)[0]
    first = 2 if source.ndim > 3 or out.shape[:2] == source.shape[:2] else 1
    maps = []
    for entry in flow.maps(source):
        dims = flow.varies(entry)
        if entry.bare:
            for channel in entry.labels.flatten(0, first - 1).reshape(-1, *entry.labels.shape[first:]):
                flow.elements.join(channel.flatten()[:1], channel.flatten())
        elif dims and dims[0] >= first:
            flow.break_off(entry.compact(), f"{flow.here} mixes its channels by {function}")
            continue
        inner = entry.labels
        for dim in range(first, source.ndim):
            inner = inner.narrow(dim, 0, 1)
        maps.append(Map(inner.expand(out.shape), entry.bare))
    flow.give(out, maps)


def reduce(flow: Flow, function: Any, args: Any, kwargs: Any, output: Any) -> None:
    """Over other dimensions channels stay; over themselves they end, zeros adding nothing to a sum or a norm."""
    source = tensors_in((args, kwargs))[0]
    dims = argument(function, args, kwargs, "dim")
    dims = list(range(source.ndim)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else list(dims)
    dims = sorted({dim % source.ndim for dim in dims}) if source.ndim else []
    maps = []
    for entry in flow.maps(source):
        varies = flow.varies(entry)
        if not entry.bare and set(varies) & set(dims):
            if not operator_name(function).startswith(("sum", "norm", "linalg_vector_norm")):
                flow.averaged.append(entry.compact())
            flow.lose(tensors_in(output), entry.compact())
            continue
        maps.append(entry)
    _note_standardised(flow, source, dims)
    for out in tensors_in(output):
        shaped = []
        for entry in maps:
            labels = entry.labels
            for dim in reversed(dims):
                labels = labels.select(dim, 0) if out.ndim < source.ndim else labels.narrow(dim, 0, 1)
            shaped.append(Map(labels, entry.bare))
        flow.give(out, shaped)


def _note_standardised(flow: Flow, source: Any, dims: list[int]) -> None:
    view = flow.weight_view(source)
    if view is not None and source.ndim > 1 and any(_changes(view.inputs, dim) for dim in dims):
        flow.standardised.add(view.layer)


def _changes(labels: Any, dim: int) -> bool:
    return bool((labels != labels.narrow(dim, 0, 1)).any())


def order(flow: Flow, function: Any, args: Any, kwargs: Any, output: Any) -> None:
    """Entries sorted along a dimension: each channel by itself, or the channels among each other."""
    source = args[0]
    dim = argument(function, args, kwargs, "dim", -1) % max(1, source.ndim)
    for out in tensors_in(output):
        flow.give(out, [])
    for entry in flow.maps(source):
        dims = flow.varies(entry)
        if entry.bare:
            continue
        if dim in dims or len(dims) > 1:
            flow.break_off(entry.compact(), f"{flow.here} sorts its channels by {function}")
            flow.lose(tensors_in(output), entry.compact())
        elif dims:
            for out in tensors_in(output):
                if out.ndim == source.ndim:
                    flow.give_line(out, dims[0], entry.line(dims[0]))


def sample(flow: Flow, function: Any, args: Any, kwargs: Any, output: Any) -> None:
    """Regions of a map, pooled: each channel by itself, at places that other values say."""
    source = args[0]
    flow.give(output, [])
    for other in tensors_in((args[1:], kwargs)):
        for entry in flow.maps(other):
            if not entry.bare:
                flow.lose([output], entry.compact())
    for entry in flow.maps(source):
        dims = flow.varies(entry)
        if not entry.bare and dims == (1,):
            flow.give_line(output, 1, entry.line(1))
        elif not entry.bare and dims:
            flow.break_off(entry.compact(), f"{flow.here} mixes its channels by {function}")


def glu(flow: Flow, function: Any, args: Any, kwargs: Any, output: Any) -> None:
    """One half of the channels gates the other, place by place."""
    source = args[0]
    dim = argument(function, args, kwargs, "dim", -1) % source.ndim
    flow.give(output, [])
    for entry in flow.maps(source):
        dims = flow.varies(entry)
        if not entry.bare and dims == (dim,):
            one, other = entry.line(dim).chunk(2)
            flow.elements.join(one, other)
            flow.give_line(output, dim, one)
        elif not entry.bare and dims:
            flow.give_line(output, dims[0], entry.line(dims[0]))


def normalise(flow: Flow, function: Any, args: Any, kwargs: Any, output: Any) -> None:
    """Softmax and the like: over channels, removing one differs from zeroing it."""
    source = args[0]
    dim = argument(function, args, kwargs, "dim", -1) % max(1, source.ndim)
    for entry in flow.maps(source):
        if not entry.bare and dim in flow.varies(entry):
            flow.averaged.append(entry.compact())
    flow.give(output, flow.maps(source))


def fold(flow: Flow, function: Any, args: Any, kwargs: Any, output: Any) -> None:
    """Overlapping windows summed up again: (B, C * places, windows) to (B, C, H, W)."""
    source = args[0]
    for entry in flow.maps(source):
        labels = entry.labels.reshape(source.shape[0], output.shape[1], -1, source.shape[-1])
        whole = Map(labels)
        if entry.bare or not set(flow.varies(whole)) <= {1, 2}:
            flow.break_off(entry.compact(), f"{flow.here} mixes its channels by {function}")
        else:  # the places of a window are of one channel
            rows = whole.rows(1)
            flow.elements.join(rows[:, :1], rows)
            flow.give_line(output, 1, whole.line(1))
