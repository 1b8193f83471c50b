"""Operations with weights, and products of tensors: they read channels and make new ones (see ``tracer``)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pruneport.compress.graph.channel_ids import ChannelLabels
from pruneport.compress.graph.operators.elementwise import meeting, share
from pruneport.compress.graph.trace import Product
from pruneport.compress.graph.tracer import OpCall, Operation, Tracer
from pruneport.compress.resize.layer_types import removed_whole
from pruneport.compress.sizes.arguments import tensors_in

__all__ = ["attend", "attend_by_layer", "convolve", "multiply", "norm", "prelu"]

_Conv = nn.modules.conv._ConvNd


def _read(tracer: Tracer, tensor: Tensor, dim: int, elements: Callable[[], Tensor], label: str) -> bool:
    """Join a tensor's channels along ``dim`` with a layer's channel ids; False where it has none there."""
    entry = tracer.labels_along(tensor, dim)
    if entry is None:
        return False
    rows = _entries_along(entry, dim % tensor.ndim)
    own = elements()
    if len(own) != len(rows):
        tracer.notes.unprunable(rows, f"{label} reads {len(rows)} channels as {len(own)}")
        return False
    tracer.channel_ids.join(own[:, None], rows)
    return True


def _pass_on(tracer: Tracer, source: Tensor, output: Tensor, dim: int, reason: str = "") -> None:
    """Maps on other dimensions than ``dim`` stay, or are unprunable where the layer mixes along them."""
    for entry in tracer.labels_of(source):
        varies = () if entry.unwrapped else tracer.varies(entry)
        if varies and varies[0] != dim % source.ndim:
            if reason:
                tracer.notes.unprunable(entry.compact(), reason)
            else:
                tracer.give_line(output, varies[0], entry.line(varies[0]))


def _note_applied_along(tracer: Tracer, name: str, output: Tensor) -> None:
    """Note the channels along which a layer is applied, which its cost grows with."""
    for ridden in tracer.labels_of(output):
        if dims := tracer.varies(ridden):
            tracer.notes.applied_along(name, ridden.line(dims[0]))


def _mixes(layer: Any) -> bool:
    """Whether a convolution's outputs depend on other places than their own."""
    return any(size != 1 for size in (*layer.kernel_size, *layer.stride)) or any(_numbers(layer.padding))


def _numbers(padding: Any) -> tuple[int, ...]:
    return () if isinstance(padding, str) else padding


def convolve(tracer: Tracer, call: OpCall) -> None:
    """A convolution's inputs end and its outputs begin; depthwise ones go through."""
    source, weight = call.args[0], call.args[1]
    tracer.give(call.output, [])
    name = tracer.layer_of(weight, (_Conv,))
    bias = call.args[2] if len(call.args) > 2 else None
    if name is None:
        if call.argument("groups", 1) == source.shape[1] == call.output.shape[1]:
            _filter(tracer, source, weight, call.output, bool(call.argument("transposed", False)))
        else:
            _multiply_unwrapped(tracer, source)
            tracer.contract(call.output)
            _weigh(tracer, tensors_in((weight, bias)), call.output)
        return
    layer: Any = tracer.modules[name]
    if bool(call.argument("transposed", False)) != layer.transposed:
        _tied(tracer, name, source, 1, call.output, bias)
        return
    _pass_on(
        tracer, source, call.output, 1, f"{name} mixes its channels as if they were places" if _mixes(layer) else ""
    )
    _note_applied_along(tracer, name, call.output)
    depthwise = layer.groups > 1 and layer.groups == layer.in_channels
    if not depthwise:
        tracer.end(call.output)
        _read(tracer, source, 1, lambda: tracer.channel_ids.register((name, "in"), layer.in_channels), name)
        out = tracer.channel_ids.register((name, "out"), layer.out_channels)
        if (name, "in") in tracer.channel_ids.offsets and removed_whole(layer):
            inputs = tracer.channel_ids.register((name, "in"), layer.in_channels).reshape(layer.groups, -1)
            both = torch.cat([inputs, out.reshape(layer.groups, -1)], 1)
            tracer.channel_ids.join(both[:, :1], both)
    else:
        out = tracer.channel_ids.register((name, "channels"), layer.out_channels)
        fed = _read(tracer, source, 1, lambda: out[:: layer.out_channels // layer.in_channels], name)
        if not fed:
            tracer.notes.unprunable(out, f"{name} reads channels whose width does not follow any layer")
        several = out.reshape(layer.in_channels, -1)
        tracer.channel_ids.join(several[:, :1], several)
    if bias is not None and not tracer.owned(bias):
        _read(tracer, bias, -1, lambda: out, name)
    if tracer.place != name:  # a forward that takes the layer's weight
        places = source if layer.transposed else call.output
        macs = places.numel() // places.shape[1] * weight.numel()
        tracer.add_product(Product(macs, _known((_line(tracer.labels_along(source, 1), 1), out))))
    tracer.give_line(call.output, 1, out)


def _filter(tracer: Tracer, source: Tensor, weight: Tensor, output: Tensor, transposed: bool) -> None:
    """Each channel filtered for itself, by a kernel that no layer owns (blurring, say)."""
    entry = tracer.labels_along(source, 1)
    if entry is None:
        return
    line = entry.line(1)
    kernel = tracer.labels_along(weight, 0)
    if kernel is not None:
        rows = kernel.rows(0)
        tracer.channel_ids.join(line[:, None], rows)
    places = source if transposed else output
    tracer.add_product(Product(places.numel() * weight[0].numel(), (line,)))
    tracer.give_line(output, 1, line)


def _tied(tracer: Tracer, name: str, source: Tensor, dim: int, output: Tensor, bias: Tensor | None = None) -> None:
    """A layer's weight the other way round, as by a decoder that shares it: it reads outputs and makes inputs."""
    layer: Any = tracer.modules[name]
    tracer.give(output, [])
    tracer.end(output)
    if getattr(layer, "groups", 1) > 1:
        for entry in tracer.labels_of(source):
            tracer.notes.unprunable(
                entry.compact(), f"the weight of {name}, in channel groups, is used by another operation"
            )
        return
    inputs, outputs = _widths(layer)
    out = tracer.channel_ids.register((name, "in"), inputs)
    _pass_on(tracer, source, output, dim, f"{name} mixes its channels as if they were places" if dim == 1 else "")
    read = tracer.channel_ids.register((name, "out"), outputs)
    _read(tracer, source, dim, lambda: read, name)
    if tracer.labels_along(source, dim) is None:  # the other way round it reads a width that follows no layer
        tracer.notes.unprunable(read, f"{name} reads channels whose width does not follow any layer")
    if bias is not None and not tracer.owned(bias):
        _read(tracer, bias, -1, lambda: out, name)
    tracer.add_product(Product(source.numel() // source.shape[dim] * layer.weight.numel(), (read, out)))
    tracer.give_line(output, dim % output.ndim, out)


def _widths(layer: Any) -> tuple[int, int]:
    """Inputs and outputs of a convolution or a linear layer."""
    if isinstance(layer, _Conv):
        return layer.in_channels, layer.out_channels
    return layer.in_features, layer.out_features


def _multiply_unwrapped(tracer: Tracer, source: Tensor) -> None:
    """A product with a weight that was computed: the channels must stay."""
    entry = tracer.labels_along(source, 1)
    if entry is not None:
        tracer.notes.unprunable(entry.compact(), f"{tracer.here} multiplies its channels by a computed weight")


def _weigh(tracer: Tracer, weights: list[Tensor], output: Tensor) -> None:
    """Layers that make the weights of a convolution: its outputs depend on them."""
    for entry in (entry for weight in weights for entry in tracer.labels_of(weight) if not entry.unwrapped):
        tracer.notes.unprunable(entry.compact(), f"{tracer.here} takes its channels as the weights of a convolution")
        tracer.lose([output], entry.compact())


def _linear(tracer: Tracer, name: str, source: Tensor, output: Tensor, bias: Tensor | None) -> None:
    """A linear layer, or an operation with its weight: it reads the last dimension's channels and makes its own."""
    layer: Any = tracer.modules[name]
    tracer.give(output, [])
    tracer.end(output)
    _pass_on(tracer, source, output, -1)
    _note_applied_along(tracer, name, output)
    _read(tracer, source, -1, lambda: tracer.channel_ids.register((name, "in"), layer.in_features), name)
    out = tracer.channel_ids.register((name, "out"), layer.out_features)
    if tracer.place != name:  # a forward that takes the layer's weight: who counts by module does not see the layer
        lines = (_line(tracer.labels_along(source, -1), source.ndim - 1), out)
        tracer.add_product(Product(output.numel() * layer.in_features, _known(lines)))
    if bias is not None and not tracer.owned(bias):
        _read(tracer, bias, -1, lambda: out, name)
        for entry in tracer.labels_of(bias):
            if entry.unwrapped and bias.ndim == 1:
                tracer.notes.bias(out, entry.rows(0))
    tracer.give_line(output, output.ndim - 1, out)


def multiply(tracer: Tracer, call: OpCall) -> None:
    """Matrix products: with a layer's weight, or of two tensors (…, I, K) and (…, K, J)."""
    *bias, left, right = call.args[:3] if call.name.startswith(("addmm", "baddbmm")) else call.args[:2]
    name = tracer.layer_of(right, (nn.Linear,)) if tracer.owned(right) or not tracer.labels_of(right) else None
    if name is not None:
        view = tracer.weight_view(right)
        if view is not None and not _along(view.inputs, right.ndim - 2):
            _tied(tracer, name, left, -1, call.output, bias[0] if bias else None)
        else:
            _linear(tracer, name, left, call.output, bias[0] if bias else None)
        return
    last = left.ndim - 1
    rows, columns = tracer.labels_along(left, last), tracer.labels_along(right, last - 1)
    for entry, other in ((rows, columns), (columns, rows)):
        if entry is not None and other is None and not entry.unwrapped:
            tracer.notes.unprunable(
                entry.compact(), f"{tracer.here} multiplies its channels with values of a fixed width"
            )
    learned = any(tracer.is_parameter(entry) for tensor in (left, right) for entry in tracer.labels_of(tensor))
    if learned:
        tracer.contract(call.output)
    for summed in (rows, columns):
        if summed is not None and not summed.unwrapped:
            tracer.lose([call.output], summed.compact(), contracted=learned)
    if rows is not None and columns is not None:
        left_rows, right_rows = _entries_along(rows, last), _entries_along(columns, last - 1)
        tracer.channel_ids.join(left_rows[:, :1], right_rows)
        tracer.channel_ids.join(left_rows, right_rows[:, :1])
    summed_over = _line(rows, last)
    lines = (
        _line(columns, last - 1) if summed_over is None else summed_over,
        _line(tracer.labels_along(left, last - 1), last - 1),
        _line(tracer.labels_along(right, last), last),
        *(_line(tracer.labels_along(left, batch), batch) for batch in range(last - 1)),
    )
    tracer.add_product(Product(call.output.numel() * left.shape[-1], _known(lines)))
    tracer.give(call.output, [])
    for batch in range(last - 1):
        share(tracer, [left, right], batch, call.output, batch)
    for tensor, dim in ((left, last - 1), (right, last)):
        entry = tracer.labels_along(tensor, dim)
        if entry is not None and not entry.unwrapped:
            tracer.give_line(call.output, dim, entry.line(dim))
    if bias:
        tracer.give(call.output, meeting(tracer, [call.output, bias[0]], call.output.shape))


def _along(labels: Tensor, dim: int) -> bool:
    """Whether the labels change along the dimension; also where there is but one place."""
    return labels.shape[dim] == 1 or bool((labels.select(dim, 0) != labels.select(dim, 1)).any())


def _entries_along(entry: ChannelLabels, dim: int) -> Tensor:
    """The channel ids at each place along a dimension, (size, n); one where the units change along it alone."""
    return entry.rows(dim) if entry.unwrapped else entry.line(dim)[:, None]


def _line(entry: ChannelLabels | None, dim: int) -> Tensor | None:
    return None if entry is None or entry.unwrapped else entry.line(dim)


def _known(lines: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
    return tuple(line for line in lines if line is not None)


def attend(tracer: Tracer, call: OpCall) -> None:
    """Fused attention of queries (…, L, E), keys (…, S, E) and values (…, S, V)."""
    query, key, value = call.args[:3]
    out = call.outputs[0]
    tracer.give(out, [])
    for read in (query, key):
        for found in tracer.labels_of(read):
            if not found.unwrapped:
                tracer.lose([out], found.compact())
    head_dims, last = range(query.ndim - 2), query.ndim - 1
    width, other = tracer.labels_along(query, last), tracer.labels_along(key, last)
    if width is not None and other is not None and not width.unwrapped and not other.unwrapped:
        tracer.channel_ids.join(width.line(last), other.line(last))
    else:
        for entry in (width, other):
            if entry is not None:
                tracer.notes.unprunable(
                    entry.compact(), f"{tracer.here} multiplies its channels by an unwrapped parameter"
                )
    for dim in head_dims:
        share(tracer, [query, key, value], dim, out, dim)
    entry = tracer.labels_along(value, last)
    places = query.numel() // query.shape[-1] * key.shape[-2]
    lines = [_line(tracer.labels_along(query, dim), dim) for dim in head_dims]
    for size, line in ((query.shape[-1], _line(width, last)), (value.shape[-1], _line(entry, last))):
        tracer.add_product(Product(places * size, _known((line, *lines))))
    if entry is not None:
        tracer.give_line(out, last, entry.line(last))
    mask = call.argument("attn_mask")
    mask = mask if mask is not None else call.argument("attn_bias")
    if isinstance(mask, Tensor):
        wide = mask.expand(*query.shape[:-2], *mask.shape[-2:])
        tracer.give(
            wide, [ChannelLabels(entry.labels.expand(wide.shape), entry.unwrapped) for entry in tracer.labels_of(mask)]
        )
        for dim in head_dims:
            own = dim - (query.ndim - mask.ndim)
            if own >= 0 and mask.shape[own] > 1:
                share(tracer, [query, wide], dim, out, dim)


def norm(kinds: tuple[type[nn.Module], ...], dim: int, averaging: bool = False) -> Operation:
    """What a norm does along ``dim``: its own channels go on; ``averaging`` where it mixes them."""

    def handler(tracer: Tracer, call: OpCall) -> None:
        source, out = call.args[0], call.outputs[0]
        weight = call.argument("weight")
        if tracer.owned(source):
            tracer.notes.standardised(tracer.place)
            view = tracer.weight_view(source)
            if view is not None:
                tracer.give_view(out, replace(view, moved=False))
            return
        name = tracer.layer_of(weight, kinds)
        tracer.give(out, [])
        over = call.argument("normalized_shape", [0])
        entry = tracer.labels_along(source, dim) if source.ndim else None
        if len(over) > 1:
            for found in tracer.labels_of(source):
                tracer.notes.unprunable(found.compact(), f"{tracer.here} normalises over channels and places at once")
            return
        _pass_on(tracer, source, out, dim)
        if name is not None:
            _note_applied_along(tracer, name, out)
        if entry is None:
            return
        if averaging:
            tracer.notes.normalised_over(entry.compact())
        if name is None:
            for tensor in (weight, call.argument("bias")):
                if tensor is not None:
                    _read(tracer, source, dim, partial(_entries, tracer, tensor), tracer.here)
            tracer.give_line(out, dim % source.ndim, entry.line(dim))
            return
        own = _normed(tracer, name, entry.line(dim))
        _read(tracer, source, dim, lambda: own, name)
        tracer.give_line(out, dim % source.ndim, own)

    return handler


def _normed(tracer: Tracer, name: str, line: Tensor) -> Tensor:
    """A norm's channel ids along ``line``; torch's instance norms lay the channels of all images side by side."""
    width = getattr(tracer.modules[name], "num_features", len(line))
    if len(line) > width and len(line) % width == 0 and (images := line.reshape(-1, width)).eq(images[:1]).all():
        return tracer.channel_ids.register((name, "channels"), width).repeat(len(images))
    return tracer.channel_ids.register((name, "channels"), len(line))


def _entries(tracer: Tracer, tensor: Tensor) -> Tensor:
    maps = tracer.labels_of(tensor)
    return maps[0].labels.flatten() if maps else torch.zeros(tensor.numel(), dtype=torch.long)


def prelu(tracer: Tracer, call: OpCall) -> None:
    """One slope a channel, or one for all."""
    source, weight = call.args[0], call.args[1]
    tracer.give(call.output, tracer.labels_of(source))
    name = tracer.layer_of(weight, (nn.PReLU,))
    if name is not None and weight.numel() > 1:
        _read(tracer, source, 1, lambda: tracer.channel_ids.register((name, "channels"), weight.numel()), name)


def attend_by_layer(tracer: Tracer, name: str, layer: Any, inputs: Any, output: Any) -> None:
    """Torch's attention layer: the embedding follows the stream; the attention heads go, or all lose the same width."""
    out, width = output[0], layer.embed_dim
    tracer.give(out, [])
    projected = [tensor.numel() // tensor.shape[-1] * width * tensor.shape[-1] for tensor in inputs[:3]]
    if layer.in_proj_weight is not None:
        axes = [(name, "in")] * 3
    else:  # keys and values have widths of their own
        axes = [(name, "in"), (f"{name}.k_proj_weight", "dim1"), (f"{name}.v_proj_weight", "dim1")]
    read = []
    for tensor, axis in zip(inputs[:3], axes, strict=True):
        size = tensor.shape[-1]
        _read(tracer, tensor, -1, lambda axis=axis, size=size: tracer.channel_ids.register(axis, size), name)  # type: ignore[misc]
        read.append(tracer.channel_ids.register(axis, size) if axis in tracer.channel_ids.offsets else None)
    rows = tracer.channel_ids.register((name, "channels"), 3 * width)
    made = tracer.channel_ids.register((f"{name}.out_proj", "out"), layer.out_proj.out_features)
    mixed = None
    if layer.in_proj_weight is None or layer.bias_k is not None or layer.add_zero_attn:
        tracer.notes.unprunable(rows, f"{name} has separate or additional projections, so its heads keep their width")
    else:
        mixed = tracer.channel_ids.register((f"{name}.out_proj", "in"), width)
        _join_attention_heads(tracer, name, torch.cat([rows, mixed]).reshape(4, layer.num_heads, -1))
    for macs, line in zip(projected, read, strict=True):
        tracer.add_product(Product(macs, _known((rows, line)), layer=name))
    tracer.add_product(Product(out.numel() * width, _known((mixed, made)), layer=name))
    tracer.give_line(out, out.ndim - 1, made)


def _join_attention_heads(tracer: Tracer, name: str, grid: Tensor) -> None:
    """Couple an attention layer's channels: (queries, keys, values and inputs of the projection; heads; width)."""
    if tracer.whole_attention_heads:
        by_head = grid.transpose(0, 1).flatten(1)
        tracer.channel_ids.join(by_head[:, :1], by_head)
        tracer.notes.attention_heads(by_head[:, 0])
        tracer.notes.counted(name, "num_heads", by_head[:, 0])
    else:
        tracer.channel_ids.join(grid[:1, :1], grid)
