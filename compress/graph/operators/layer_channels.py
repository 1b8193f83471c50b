"""What layers of every kind do with channels: read some of their inputs, pass on others, make their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from pruneport.compress.graph.tracing.channel_ids import ChannelLabels
from pruneport.compress.graph.tracing.trace import Product
from pruneport.compress.graph.tracing.tracer import Tracer

__all__ = [
    "CONVOLUTION",
    "apply_reversed",
    "ids_along",
    "known_lines",
    "line_along",
    "note_applied_along",
    "pass_on",
    "read_channels",
]

CONVOLUTION = nn.modules.conv._ConvNd


def read_channels(tracer: Tracer, tensor: Tensor, dim: int, elements: Callable[[], Tensor], label: str) -> bool:
    """Join a tensor's channels along ``dim`` with a layer's channel ids; False where it has none there."""
    labels = tracer.labels_along(tensor, dim)
    if labels is None:
        return False
    rows = ids_along(labels, dim % tensor.ndim)
    ids = elements()
    if len(ids) != len(rows):
        tracer.notes.unprunable(rows, f"{label} reads {len(rows)} channels as {len(ids)}")
        return False
    tracer.channel_ids.join(ids[:, None], rows)
    return True


def pass_on(tracer: Tracer, source: Tensor, output: Tensor, dim: int, reason: str = "") -> None:
    """Maps on other dimensions than ``dim`` stay, or are unprunable where the layer mixes along them."""
    for labels in tracer.labels_of(source):
        varies = () if labels.unwrapped else tracer.varies(labels)
        if varies and varies[0] != dim % source.ndim:
            if reason:
                tracer.notes.unprunable(labels.compact(), reason)
            else:
                tracer.give_line(output, varies[0], labels.line(varies[0]))


def note_applied_along(tracer: Tracer, name: str, output: Tensor) -> None:
    """Note the channels along which a layer is applied, which its cost grows with."""
    for along in tracer.labels_of(output):
        if dims := tracer.varies(along):
            tracer.notes.applied_along(name, along.line(dims[0]))


def apply_reversed(
    tracer: Tracer, name: str, source: Tensor, dim: int, output: Tensor, bias: Tensor | None = None
) -> None:
    """A layer's weight the other way round, as by a decoder that shares it: it reads outputs and makes inputs."""
    layer: Any = tracer.modules[name]
    tracer.give(output, [])
    tracer.end(output)
    if getattr(layer, "groups", 1) > 1:
        for labels in tracer.labels_of(source):
            tracer.notes.unprunable(
                labels.compact(), f"the weight of {name}, in channel groups, is used by another operation"
            )
        return
    inputs, outputs = _widths(layer)
    out = tracer.channel_ids.register((name, "in"), inputs)
    pass_on(tracer, source, output, dim, f"{name} mixes its channels as if they were places" if dim == 1 else "")
    read = tracer.channel_ids.register((name, "out"), outputs)
    read_channels(tracer, source, dim, lambda: read, name)
    if tracer.labels_along(source, dim) is None:  # the other way round it reads a width that follows no layer
        tracer.notes.unprunable(read, f"{name} reads channels whose width does not follow any layer")
    if bias is not None and not tracer.owned(bias):
        read_channels(tracer, bias, -1, lambda: out, name)
    tracer.add_product(Product(source.numel() // source.shape[dim] * layer.weight.numel(), (read, out)))
    tracer.give_line(output, dim % output.ndim, out)


def _widths(layer: Any) -> tuple[int, int]:
    """Inputs and outputs of a convolution or a linear layer."""
    if isinstance(layer, CONVOLUTION):
        return layer.in_channels, layer.out_channels
    return layer.in_features, layer.out_features


def ids_along(labels: ChannelLabels, dim: int) -> Tensor:
    """The channel ids at each place along a dimension, (size, n); one where the units change along it alone."""
    return labels.rows(dim) if labels.unwrapped else labels.line(dim)[:, None]


def line_along(labels: ChannelLabels | None, dim: int) -> Tensor | None:
    """The channel ids along a dimension, (size,); None where no layer's channels lie there."""
    return None if labels is None or labels.unwrapped else labels.line(dim)


def known_lines(lines: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
    """Those lines that there are."""
    return tuple(line for line in lines if line is not None)
