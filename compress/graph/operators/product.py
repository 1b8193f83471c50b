"""Matrix products: linear layers, and products of two tensors (see ``tracer``)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pruneport.compress.graph.operators.elementwise import meeting, share
from pruneport.compress.graph.operators.layer_channels import (
    apply_reversed,
    ids_along,
    known_lines,
    line_along,
    note_applied_along,
    pass_on,
    read_channels,
)
from pruneport.compress.graph.tracing.trace import Product
from pruneport.compress.graph.tracing.tracer import OpCall, Tracer

__all__ = ["multiply"]


def multiply(tracer: Tracer, call: OpCall) -> None:
    """Matrix products: with a layer's weight, or of two tensors (…, I, K) and (…, K, J)."""
    *bias, left, right = call.args[:3] if call.name.startswith(("addmm", "baddbmm")) else call.args[:2]
    name = tracer.layer_of(right, (nn.Linear,)) if tracer.owned(right) or not tracer.labels_of(right) else None
    if name is not None:
        view = tracer.weight_view(right)
        if view is not None and not _changes_along(view.inputs, right.ndim - 2):
            apply_reversed(tracer, name, left, -1, call.output, bias[0] if bias else None)
        else:
            _linear(tracer, name, left, call.output, bias[0] if bias else None)
        return
    last = left.ndim - 1
    rows, columns = tracer.labels_along(left, last), tracer.labels_along(right, last - 1)
    for labels, partner in ((rows, columns), (columns, rows)):
        if labels is not None and partner is None and not labels.unwrapped:
            tracer.notes.unprunable(
                labels.compact(), f"{tracer.here} multiplies its channels with values of a fixed width"
            )
    learned = any(tracer.is_parameter(labels) for tensor in (left, right) for labels in tracer.labels_of(tensor))
    if learned:
        tracer.contract(call.output)
    for summed in (rows, columns):
        if summed is not None and not summed.unwrapped:
            tracer.lose([call.output], summed.compact(), contracted=learned)
    if rows is not None and columns is not None:
        left_rows, right_rows = ids_along(rows, last), ids_along(columns, last - 1)
        tracer.channel_ids.join(left_rows[:, :1], right_rows)
        tracer.channel_ids.join(left_rows, right_rows[:, :1])
    summed_over = line_along(rows, last)
    lines = (
        line_along(columns, last - 1) if summed_over is None else summed_over,
        line_along(tracer.labels_along(left, last - 1), last - 1),
        line_along(tracer.labels_along(right, last), last),
        *(line_along(tracer.labels_along(left, batch), batch) for batch in range(last - 1)),
    )
    tracer.add_product(Product(call.output.numel() * left.shape[-1], known_lines(lines)))
    tracer.give(call.output, [])
    for batch in range(last - 1):
        share(tracer, [left, right], batch, call.output, batch)
    for tensor, dim in ((left, last - 1), (right, last)):
        labels = tracer.labels_along(tensor, dim)
        if labels is not None and not labels.unwrapped:
            tracer.give_line(call.output, dim, labels.line(dim))
    if bias:
        tracer.give(call.output, meeting(tracer, [call.output, bias[0]], call.output.shape))


def _linear(tracer: Tracer, name: str, source: Tensor, output: Tensor, bias: Tensor | None) -> None:
    """A linear layer, or an operation with its weight: it reads the last dimension's channels and makes its own."""
    layer: Any = tracer.modules[name]
    tracer.give(output, [])
    tracer.end(output)
    pass_on(tracer, source, output, -1)
    note_applied_along(tracer, name, output)
    read_channels(tracer, source, -1, lambda: tracer.channel_ids.register((name, "in"), layer.in_features), name)
    out = tracer.channel_ids.register((name, "out"), layer.out_features)
    if tracer.place != name:  # a forward that takes the layer's weight: who counts by module does not see the layer
        lines = (line_along(tracer.labels_along(source, -1), source.ndim - 1), out)
        tracer.add_product(Product(output.numel() * layer.in_features, known_lines(lines)))
    if bias is not None and not tracer.owned(bias):
        read_channels(tracer, bias, -1, lambda: out, name)
        for labels in tracer.labels_of(bias):
            if labels.unwrapped and bias.ndim == 1:
                tracer.notes.bias(out, labels.rows(0))
    tracer.give_line(output, output.ndim - 1, out)


def _changes_along(labels: Tensor, dim: int) -> bool:
    """Whether the labels change along the dimension; also where there is but one place."""
    return labels.shape[dim] == 1 or bool((labels.select(dim, 0) != labels.select(dim, 1)).any())
