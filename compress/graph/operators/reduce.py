"""Operations that mix entries along a dimension: places, or channels (see ``tracer``)."""

from __future__ import annotations

from typing import Any

from pruneport.compress.graph.tracing.channel_ids import ChannelLabels
from pruneport.compress.graph.tracing.tracer import OpCall, Tracer
from pruneport.compress.sizes.arguments import nested_tensors

__all__ = ["fold", "glu", "normalise", "order", "pool", "reduce", "sample"]


def pool(tracer: Tracer, call: OpCall) -> None:
    """Places are mixed, each channel for itself: dimensions from the third on."""
    source, out = call.inputs[0], call.outputs[0]
    first = 2 if source.ndim > 3 or out.shape[:2] == source.shape[:2] else 1
    pooled = []
    for labels in tracer.labels_of(source):
        dims = tracer.varies(labels)
        if labels.unwrapped:
            for channel in labels.ids.flatten(0, first - 1).reshape(-1, *labels.ids.shape[first:]):
                tracer.channel_ids.join(channel.flatten()[:1], channel.flatten())
        elif dims and dims[0] >= first:
            tracer.notes.unprunable(labels.compact(), f"{tracer.here} mixes its channels by {call.function}")
            continue
        inner = labels.ids
        for dim in range(first, source.ndim):
            inner = inner.narrow(dim, 0, 1)
        pooled.append(ChannelLabels(inner.expand(out.shape), labels.unwrapped))
    tracer.give(out, pooled)


def reduce(tracer: Tracer, call: OpCall) -> None:
    """Over other dimensions channels stay; over themselves they end, zeros adding nothing to a sum or a norm."""
    source = call.inputs[0]
    dims = call.argument("dim")
    dims = list(range(source.ndim)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else list(dims)
    dims = sorted({dim % source.ndim for dim in dims}) if source.ndim else []
    left = []
    for labels in tracer.labels_of(source):
        varies = tracer.varies(labels)
        if not labels.unwrapped and set(varies) & set(dims):
            if not call.name.startswith(("sum", "norm", "linalg_vector_norm")):
                tracer.notes.normalised_over(labels.compact())
            tracer.lose(call.outputs, labels.compact())
            continue
        left.append(labels)
    _note_standardised(tracer, source, dims)
    for out in call.outputs:
        shaped = []
        for labels in left:
            ids = labels.ids
            for dim in reversed(dims):
                ids = ids.select(dim, 0) if out.ndim < source.ndim else ids.narrow(dim, 0, 1)
            shaped.append(ChannelLabels(ids, labels.unwrapped))
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
    for labels in tracer.labels_of(source):
        dims = tracer.varies(labels)
        if labels.unwrapped:
            continue
        if dim in dims or len(dims) > 1:
            tracer.notes.unprunable(labels.compact(), f"{tracer.here} sorts its channels by {call.function}")
            tracer.lose(call.outputs, labels.compact())
        elif dims:
            for out in call.outputs:
                if out.ndim == source.ndim:
                    tracer.give_line(out, dims[0], labels.line(dims[0]))


def sample(tracer: Tracer, call: OpCall) -> None:
    """Regions of an image, pooled: each channel by itself, at places that other values say."""
    source = call.args[0]
    tracer.give(call.output, [])
    for other in nested_tensors((call.args[1:], call.kwargs)):
        for labels in tracer.labels_of(other):
            if not labels.unwrapped:
                tracer.lose([call.output], labels.compact())
    for labels in tracer.labels_of(source):
        dims = tracer.varies(labels)
        if not labels.unwrapped and dims == (1,):
            tracer.give_line(call.output, 1, labels.line(1))
        elif not labels.unwrapped and dims:
            tracer.notes.unprunable(labels.compact(), f"{tracer.here} mixes its channels by {call.function}")


def glu(tracer: Tracer, call: OpCall) -> None:
    """One half of the channels gates the other, place by place."""
    source = call.args[0]
    dim = call.argument("dim", -1) % source.ndim
    tracer.give(call.output, [])
    for labels in tracer.labels_of(source):
        dims = tracer.varies(labels)
        if not labels.unwrapped and dims == (dim,):
            values, gates = labels.line(dim).chunk(2)
            tracer.channel_ids.join(values, gates)
            tracer.give_line(call.output, dim, values)
        elif not labels.unwrapped and dims:
            tracer.give_line(call.output, dims[0], labels.line(dims[0]))


def normalise(tracer: Tracer, call: OpCall) -> None:
    """Softmax and the like: over channels, removing one differs from zeroing it."""
    source = call.args[0]
    dim = call.argument("dim", -1) % max(1, source.ndim)
    for labels in tracer.labels_of(source):
        if not labels.unwrapped and dim in tracer.varies(labels):
            tracer.notes.normalised_over(labels.compact())
    tracer.give(call.output, tracer.labels_of(source))


def fold(tracer: Tracer, call: OpCall) -> None:
    """Overlapping windows summed up again: (B, C * places, windows) to (B, C, H, W)."""
    source = call.args[0]
    for labels in tracer.labels_of(source):
        whole = ChannelLabels(labels.ids.reshape(source.shape[0], call.output.shape[1], -1, source.shape[-1]))
        if labels.unwrapped or not set(tracer.varies(whole)) <= {1, 2}:
            tracer.notes.unprunable(labels.compact(), f"{tracer.here} mixes its channels by {call.function}")
        else:  # the places of a window are of one channel
            rows = whole.rows(1)
            tracer.channel_ids.join(rows[:, :1], rows)
            tracer.give_line(call.output, 1, whole.line(1))
