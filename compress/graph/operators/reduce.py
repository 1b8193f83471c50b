"""Operations that mix entries along a dimension: places, or channels (see ``tracer``)."""

from __future__ import annotations

from typing import Any

from pruneport.compress.graph.tracing.channel_ids import ChannelLabels
from pruneport.compress.graph.tracing.tracer import OpCall, Tracer
from pruneport.compress.sizes.arguments import tensors_in

__all__ = ["fold", "glu", "normalise", "order", "pool", "reduce", "sample"]


def pool(tracer: Tracer, call: OpCall) -> None:
    """Places are mixed, each channel for itself: dimensions from the third on."""
    source, out = call.inputs[0], call.outputs[0]
    first = 2 if source.ndim > 3 or out.shape[:2] == source.shape[:2] else 1
    maps = []
    for entry in tracer.labels_of(source):
        dims = tracer.varies(entry)
        if entry.unwrapped:
            for channel in entry.labels.flatten(0, first - 1).reshape(-1, *entry.labels.shape[first:]):
                tracer.channel_ids.join(channel.flatten()[:1], channel.flatten())
        elif dims and dims[0] >= first:
            tracer.notes.unprunable(entry.compact(), f"{tracer.here} mixes its channels by {call.function}")
            continue
        inner = entry.labels
        for dim in range(first, source.ndim):
            inner = inner.narrow(dim, 0, 1)
        maps.append(ChannelLabels(inner.expand(out.shape), entry.unwrapped))
    tracer.give(out, maps)


def reduce(tracer: Tracer, call: OpCall) -> None:
    """Over other dimensions channels stay; over themselves they end, zeros adding nothing to a sum or a norm."""
    source = call.inputs[0]
    dims = call.argument("dim")
    dims = list(range(source.ndim)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else list(dims)
    dims = sorted({dim % source.ndim for dim in dims}) if source.ndim else []
    maps = []
    for entry in tracer.labels_of(source):
        varies = tracer.varies(entry)
        if not entry.unwrapped and set(varies) & set(dims):
            if not call.name.startswith(("sum", "norm", "linalg_vector_norm")):
                tracer.notes.normalised_over(entry.compact())
            tracer.lose(call.outputs, entry.compact())
            continue
        maps.append(entry)
    _note_standardised(tracer, source, dims)
    for out in call.outputs:
        shaped = []
        for entry in maps:
            labels = entry.labels
            for dim in reversed(dims):
                labels = labels.select(dim, 0) if out.ndim < source.ndim else labels.narrow(dim, 0, 1)
            shaped.append(ChannelLabels(labels, entry.unwrapped))
        tracer.give(out, shaped)


def _note_standardised(tracer: Tracer, source: Any, dims: list[int]) -> None:
    view = tracer.weight_view(source)
    if view is not None and source.ndim > 1 and any(_changes(view.inputs, dim) for dim in dims):
        tracer.notes.standardised(view.layer)


def _changes(labels: Any, dim: int) -> bool:
    return bool((labels != labels.narrow(dim, 0, 1)).any())


def order(tracer: Tracer, call: OpCall) -> None:
    """Entries sorted along a dimension: each channel by itself, or the channels among each other."""
    source = call.args[0]
    dim = call.argument("dim", -1) % max(1, source.ndim)
    for out in call.outputs:
        tracer.give(out, [])
    for entry in tracer.labels_of(source):
        dims = tracer.varies(entry)
        if entry.unwrapped:
            continue
        if dim in dims or len(dims) > 1:
            tracer.notes.unprunable(entry.compact(), f"{tracer.here} sorts its channels by {call.function}")
            tracer.lose(call.outputs, entry.compact())
        elif dims:
            for out in call.outputs:
                if out.ndim == source.ndim:
                    tracer.give_line(out, dims[0], entry.line(dims[0]))


def sample(tracer: Tracer, call: OpCall) -> None:
    """Regions of an image, pooled: each channel by itself, at places that other values say."""
    source = call.args[0]
    tracer.give(call.output, [])
    for other in tensors_in((call.args[1:], call.kwargs)):
        for entry in tracer.labels_of(other):
            if not entry.unwrapped:
                tracer.lose([call.output], entry.compact())
    for entry in tracer.labels_of(source):
        dims = tracer.varies(entry)
        if not entry.unwrapped and dims == (1,):
            tracer.give_line(call.output, 1, entry.line(1))
        elif not entry.unwrapped and dims:
            tracer.notes.unprunable(entry.compact(), f"{tracer.here} mixes its channels by {call.function}")


def glu(tracer: Tracer, call: OpCall) -> None:
    """One half of the channels gates the other, place by place."""
    source = call.args[0]
    dim = call.argument("dim", -1) % source.ndim
    tracer.give(call.output, [])
    for entry in tracer.labels_of(source):
        dims = tracer.varies(entry)
        if not entry.unwrapped and dims == (dim,):
            one, other = entry.line(dim).chunk(2)
            tracer.channel_ids.join(one, other)
            tracer.give_line(call.output, dim, one)
        elif not entry.unwrapped and dims:
            tracer.give_line(call.output, dims[0], entry.line(dims[0]))


def normalise(tracer: Tracer, call: OpCall) -> None:
    """Softmax and the like: over channels, removing one differs from zeroing it."""
    source = call.args[0]
    dim = call.argument("dim", -1) % max(1, source.ndim)
    for entry in tracer.labels_of(source):
        if not entry.unwrapped and dim in tracer.varies(entry):
            tracer.notes.normalised_over(entry.compact())
    tracer.give(call.output, tracer.labels_of(source))


def fold(tracer: Tracer, call: OpCall) -> None:
    """Overlapping windows summed up again: (B, C * places, windows) to (B, C, H, W)."""
    source = call.args[0]
    for entry in tracer.labels_of(source):
        labels = entry.labels.reshape(source.shape[0], call.output.shape[1], -1, source.shape[-1])
        whole = ChannelLabels(labels)
        if entry.unwrapped or not set(tracer.varies(whole)) <= {1, 2}:
            tracer.notes.unprunable(entry.compact(), f"{tracer.here} mixes its channels by {call.function}")
        else:  # the places of a window are of one channel
            rows = whole.rows(1)
            tracer.channel_ids.join(rows[:, :1], rows)
            tracer.give_line(call.output, 1, whole.line(1))
