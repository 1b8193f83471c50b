"""Operations with weights, and products of tensors: they read channels and make new ones (see ``tracer``)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pruneport.compress.graph.op_elementwise import meeting, share
from pruneport.compress.graph.tracer import Flow, Map, Operation, Product
from pruneport.compress.resize.layers import removed_whole
from pruneport.compress.sizes.arguments import argument, operator_name, tensors_in

__all__ = ["attend", "attend_by_layer", "convolve", "multiply", "norm", "prelu"]

_Conv = nn.modules.conv._ConvNd


def _read(flow: Flow, tensor: Tensor, dim: int, elements: Callable[[], Tensor], label: str) -> bool:
    """Join a tensor's channels along ``dim`` with a layer's elements; False where it has none there."""
    entry = flow.map_along(tensor, dim)
    if entry is None:
        return False
    rows = _entries_along(entry, dim % tensor.ndim)
    own = elements()
    if len(own) != len(rows):
        flow.break_off(rows, f"{label} reads {len(rows)} channels as {len(own)}")
        return False
    flow.elements.join(own[:, None], rows)
    return True


def _pass_on(flow: Flow, source: Tensor, output: Tensor, dim: int, reason: str = "") -> None:
    """Maps on other dimensions than ``dim`` stay, or are broken where the layer mixes along them."""
    for entry in flow.maps(source):
        varies = () if entry.bare else flow.varies(entry)
        if varies and varies[0] != dim % source.ndim:
            if reason:
                flow.break_off(entry.compact(), reason)
            else:
                flow.give_line(output, varies[0], entry.line(varies[0]))


def _note_riding(flow: Flow, name: str, output: Tensor) -> None:
    """Note the channels along which a layer is applied, which its cost grows with."""
    for ridden in flow.maps(output):
        if dims := flow.varies(ridden):
            flow.riding[name] = ridden.line(dims[0])


def _mixes(layer: Any) -> bool:
    """Whether a convolution's outputs depend on other places than their own."""
    return any(size != 1 for size in (*layer.kernel_size, *layer.stride)) or any(_numbers(layer.padding))


def _numbers(padding: Any) -> tuple[int, ...]:
    return () if isinstance(padding, str) else padding


def convolve(flow: Flow, function: Any, args: Any, kwargs: Any, output: Any) -> None:
    """A convolution's inputs end and its outputs begin; depthwise ones go through."""
    source, weight = args[0], args[1]
    flow.give(output, [])
    name = flow.layer_of(weight, (_Conv,))
    bias = args[2] if len(args) > 2 else None
    if name is None:
        if argument(function, args, kwargs, "groups", 1) == source.shape[1] == output.shape[1]:
            _filter(flow, source, weight, output, bool(argument(function, args, kwargs, "transposed", False)))
        else:
            _multiply_bare(flow, source)
            flow.contract(output)
            _weigh(flow, tensors_in((weight, bias)), output)
        return
    layer: Any = flow.modules[name]
    if bool(argument(function, args, kwargs, "transposed", False)) != layer.transposed:
        _tied(flow, name, source, 1, output, bias)
        return
    _pass_on(flow, source, output, 1, f"{name} mixes its channels as if they were places" if _mixes(layer) else "")
    _note_riding(flow, name, output)
    depthwise = layer.groups > 1 and layer.groups == layer.in_channels
    if not depthwise:
        flow.end(output)
        _read(flow, source, 1, lambda: flow.elements.register((name, "in"), layer.in_channels), name)
        out = flow.elements.register((name, "out"), layer.out_channels)
        if (name, "in") in flow.elements.offsets and removed_whole(layer):
            inputs = flow.elements.register((name, "in"), layer.in_channels).reshape(layer.groups, -1)
            both = torch.cat([inputs, out.reshape(layer.groups, -1)], 1)
            flow.elements.join(both[:, :1], both)
    else:
        out = flow.elements.register((name, "channels"), layer.out_channels)
        fed = _read(flow, source, 1, lambda: out[:: layer.out_channels // layer.in_channels], name)
        if not fed:
            flow.break_off(out, f"{name} reads channels whose width does not follow any layer")
        several = out.reshape(layer.in_channels, -1)
        flow.elements.join(several[:, :1], several)
    if bias is not None and not flow.owned(bias):
        _read(flow, bias, -1, lambda: out, name)
    if flow.place != name:  # a forward that takes the layer's weight
        places = source if layer.transposed else output
        macs = places.numel() // places.shape[1] * weight.numel()
        flow.add_product(Product(macs, _known((_line(flow.map_along(source, 1), 1), out))))
    flow.give_line(output, 1, out)


def _filter(flow: Flow, source: Tensor, weight: Tensor, output: Tensor, transposed: bool) -> None:
    """Each channel filtered for itself, by a kernel that no layer owns (blurring, say)."""
    entry = flow.map_along(source, 1)
    if entry is None:
        return
    line = entry.line(1)
    kernel = flow.map_along(weight, 0)
    if kernel is not None:
        rows = kernel.rows(0)
        flow.elements.join(line[:, None], rows)
    places = source if transposed else output
    flow.add_product(Product(places.numel() * weight[0].numel(), (line,)))
    flow.give_line(output, 1, line)


def _tied(flow: Flow, name: str, source: Tensor, dim: int, output: Tensor, bias: Tensor | None = None) -> None:
    """A layer's weight the other way round, as by a decoder that shares it: it reads outputs and makes inputs."""
    layer: Any = flow.modules[name]
    flow.give(output, [])
    flow.end(output)
    if getattr(layer, "groups", 1) > 1:
        for entry in flow.maps(source):
            flow.break_off(entry.compact(), f"the weight of {name}, in channel groups, is used by another operation")
        return
    inputs, outputs = _widths(layer)
    out = flow.elements.register((name, "in"), inputs)
    _pass_on(flow, source, output, dim, f"{name} mixes its channels as if they were places" if dim == 1 else "")
    read = flow.elements.register((name, "out"), outputs)
    _read(flow, source, dim, lambda: read, name)
    if flow.map_along(source, dim) is None:  # the other way round it reads a width that follows no layer
        flow.break_off(read, f"{name} reads channels whose width does not follow any layer")
    if bias is not None and not flow.owned(bias):
        _read(flow, bias, -1, lambda: out, name)
    flow.add_product(Product(source.numel() // source.shape[dim] * layer.weight.numel(), (read, out)))
    flow.give_line(output, dim % output.ndim, out)


def _widths(layer: Any) -> tuple[int, int]:
    """Inputs and outputs of a convolution or a linear layer."""
    if isinstance(layer, _Conv):
        return layer.in_channels, layer.out_channels
    return layer.in_features, layer.out_features


def _multiply_bare(flow: Flow, source: Tensor) -> None:
    entry = flow.map_along(source, 1)
    if entry is not None:
        flow.break_off(entry.compact(), f"{flow.here} multiplies its channels by a computed weight")


def _weigh(flow: Flow, weights: list[Tensor], output: Tensor) -> None:
    """Layers that make the weights of a convolution: its outputs depend on them."""
    for entry in (entry for weight in weights for entry in flow.maps(weight) if not entry.bare):
        flow.break_off(entry.compact(), f"{flow.here} takes its channels as the weights of a convolution")
        flow.lose([output], entry.compact())


def _linear(flow: Flow, name: str, source: Tensor, output: Tensor, bias: Tensor | None) -> None:
    layer: Any = flow.modules[name]
    flow.give(output, [])
    flow.end(output)
    _pass_on(flow, source, output, -1)
    _note_riding(flow, name, output)
    _read(flow, source, -1, lambda: flow.elements.register((name, "in"), layer.in_features), name)
    out = flow.elements.register((name, "out"), layer.out_features)
    if flow.place != name:  # a forward that takes the layer's weight: who counts by module does not see the layer
        lines = (_line(flow.map_along(source, -1), source.ndim - 1), out)
        flow.add_product(Product(output.numel() * layer.in_features, _known(lines)))
    if bias is not None and not flow.owned(bias):
        _read(flow, bias, -1, lambda: out, name)
        flow.biases += [(out, entry.rows(0)) for entry in flow.maps(bias) if entry.bare and bias.ndim == 1]
    flow.give_line(output, output.ndim - 1, out)


def multiply(flow: Flow, function: Any, args: Any, kwargs: Any, output: Any) -> None:
    """Matrix products: with a layer's weight, or of two tensors (…, I, K) and (…, K, J)."""
    *bias, left, right = args[:3] if operator_name(function).startswith(("addmm", "baddbmm")) else args[:2]
    name = flow.layer_of(right, (nn.Linear,)) if flow.owned(right) or not flow.maps(right) else None
    if name is not None:
        view = flow.weight_view(right)
        if view is not None and not _along(view.inputs, right.ndim - 2):
            _tied(flow, name, left, -1, output, bias[0] if bias else None)
        else:
            _linear(flow, name, left, output, bias[0] if bias else None)
        return
    last = left.ndim - 1
    rows, columns = flow.map_along(left, last), flow.map_along(right, last - 1)
    for entry, other in ((rows, columns), (columns, rows)):
        if entry is not None and other is None and not entry.bare:
            flow.break_off(entry.compact(), f"{flow.here} multiplies its channels with values of a fixed width")
    learned = any(flow.is_parameter(entry) for tensor in (left, right) for entry in flow.maps(tensor))
    if learned:
        flow.contract(output)
    for summed in (rows, columns):
        if summed is not None and not summed.bare:
            flow.lose([output], summed.compact(), contracted=learned)
    if rows is not None and columns is not None:
        left_rows, right_rows = _entries_along(rows, last), _entries_along(columns, last - 1)
        flow.elements.join(left_rows[:, :1], right_rows)
        flow.elements.join(left_rows, right_rows[:, :1])
    summed_over = _line(rows, last)
    lines = (
        _line(columns, last - 1) if summed_over is None else summed_over,
        _line(flow.map_along(left, last - 1), last - 1),
        _line(flow.map_along(right, last), last),
        *(_line(flow.map_along(left, batch), batch) for batch in range(last - 1)),
    )
    flow.add_product(Product(output.numel() * left.shape[-1], _known(lines)))
    flow.give(output, [])
    for batch in range(last - 1):
        share(flow, [left, right], batch, output, batch)
    for tensor, dim in ((left, last - 1), (right, last)):
        entry = flow.map_along(tensor, dim)
        if entry is not None and not entry.bare:
            flow.give_line(output, dim, entry.line(dim))
    if bias:
        flow.give(output, meeting(flow, [output, bias[0]], output.shape))


def _along(labels: Tensor, dim: int) -> bool:
    """Whether the labels change along the dimension; also where there is but one place."""
    return labels.shape[dim] == 1 or bool((labels.select(dim, 0) != labels.select(dim, 1)).any())


def _entries_along(entry: Map, dim: int) -> Tensor:
    """The elements at each place along a dimension, (size, n); one of a map whose units change along it alone."""
    return entry.rows(dim) if entry.bare else entry.line(dim)[:, None]


def _line(entry: Map | None, dim: int) -> Tensor | None:
    return None if entry is None or entry.bare else entry.line(dim)


def _known(lines: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
    return tuple(line for line in lines if line is not None)


def attend(flow: Flow, function: Any, args: Any, kwargs: Any, output: Any) -> None:
    """Fused attention of queries (…, L, E), keys (…, S, E) and values (…, S, V)."""
    query, key, value = args[:3]
    out = tensors_in(output)[0]
    flow.give(out, [])
    for read in (query, key):
        for found in flow.maps(read):
            if not found.bare:
                flow.lose([out], found.compact())
    heads, last = range(query.ndim - 2), query.ndim - 1
    width, other = flow.map_along(query, last), flow.map_along(key, last)
    if width is not None and other is not None and not width.bare and not other.bare:
        flow.elements.join(width.line(last), other.line(last))
    else:
        for entry in (width, other):
            if entry is not None:
                flow.break_off(entry.compact(), f"{flow.here} multiplies its channels by a bare parameter")
    for dim in heads:
        share(flow, [query, key, value], dim, out, dim)
    entry = flow.map_along(value, last)
    places = query.numel() // query.shape[-1] * key.shape[-2]
    lines = [_line(flow.map_along(query, dim), dim) for dim in heads]
    for size, line in ((query.shape[-1], _line(width, last)), (value.shape[-1], _line(entry, last))):
        flow.add_product(Product(places * size, _known((line, *lines))))
    if entry is not None:
        flow.give_line(out, last, entry.line(last))
    mask = argument(function, args, kwargs, "attn_mask")
    mask = mask if mask is not None else argument(function, args, kwargs, "attn_bias")
    if isinstance(mask, Tensor):
        wide = mask.expand(*query.shape[:-2], *mask.shape[-2:])
        flow.give(wide, [Map(entry.labels.expand(wide.shape), entry.bare) for entry in flow.maps(mask)])
        for dim in heads:
            own = dim - (query.ndim - mask.ndim)
            if own >= 0 and mask.shape[own] > 1:
                share(flow, [query, wide], dim, out, dim)


def norm(kinds: tuple[type[nn.Module], ...], dim: int, averaging: bool = False) -> Operation:
    """What a norm does along ``dim``: its own channels go on; ``averaging`` where it mixes them."""

    def handler(flow: Flow, function: Any, args: Any, kwargs: Any, output: Any) -> None:
        source, out = args[0], tensors_in(output)[0]
        weight = argument(function, args, kwargs, "weight")
        if flow.owned(source):
            flow.standardised.add(flow.place)
            view = flow.weight_view(source)
            if view is not None:
                flow.give_view(out, replace(view, moved=False))
            return
        name = flow.layer_of(weight, kinds)
        flow.give(out, [])
        over = argument(function, args, kwargs, "normalized_shape", [0])
        entry = flow.map_along(source, dim) if source.ndim else None
        if len(over) > 1:
            for found in flow.maps(source):
                flow.break_off(found.compact(), f"{flow.here} normalises over channels and places at once")
            return
        _pass_on(flow, source, out, dim)
        if name is not None:
            _note_riding(flow, name, out)
        if entry is None:
            return
        if averaging:
            flow.averaged.append(entry.compact())
        if name is None:
            for tensor in (weight, argument(function, args, kwargs, "bias")):
                if tensor is not None:
                    _read(flow, source, dim, partial(_entries, flow, tensor), flow.here)
            flow.give_line(out, dim % source.ndim, entry.line(dim))
            return
        own = _normed(flow, name, entry.line(dim))
        _read(flow, source, dim, lambda: own, name)
        flow.give_line(out, dim % source.ndim, own)

    return handler


def _normed(flow: Flow, name: str, line: Tensor) -> Tensor:
    """A norm's elements along ``line``; torch's instance norms lay the channels of all images side by side."""
    width = getattr(flow.modules[name], "num_features", len(line))
    if len(line) > width and len(line) % width == 0 and (images := line.reshape(-1, width)).eq(images[:1]).all():
        return flow.elements.register((name, "channels"), width).repeat(len(images))
    return flow.elements.register((name, "channels"), len(line))


def _entries(flow: Flow, tensor: Tensor) -> Tensor:
    maps = flow.maps(tensor)
    return maps[0].labels.flatten() if maps else torch.zeros(tensor.numel(), dtype=torch.long)


def prelu(flow: Flow, function: Any, args: Any, kwargs: Any, output: Any) -> None:
    """One slope a channel, or one for all."""
    source, weight = args[0], args[1]
    flow.give(output, flow.maps(source))
    name = flow.layer_of(weight, (nn.PReLU,))
    if name is not None and weight.numel() > 1:
        _read(flow, source, 1, lambda: flow.elements.register((name, "channels"), weight.numel()), name)


def attend_by_layer(flow: Flow, name: str, layer: Any, inputs: Any, output: Any) -> None:
    """Torch's attention layer: its embedding follows the stream; its heads go, or shrink in width, all alike."""
    out, width = output[0], layer.embed_dim
    flow.give(out, [])
    projected = [tensor.numel() // tensor.shape[-1] * width * tensor.shape[-1] for tensor in inputs[:3]]
    if layer.in_proj_weight is not None:
        axes = [(name, "in")] * 3
    else:  # keys and values have widths of their own
        axes = [(name, "in"), (f"{name}.k_proj_weight", "dim1"), (f"{name}.v_proj_weight", "dim1")]
    read = []
    for tensor, axis in zip(inputs[:3], axes, strict=True):
        size = tensor.shape[-1]
        _read(flow, tensor, -1, lambda axis=axis, size=size: flow.elements.register(axis, size), name)  # type: ignore[misc]
        read.append(flow.elements.register(axis, size) if axis in flow.elements.offsets else None)
    rows = flow.elements.register((name, "channels"), 3 * width)
    made = flow.elements.register((f"{name}.out_proj", "out"), layer.out_proj.out_features)
    mixed = None
    if layer.in_proj_weight is None or layer.bias_k is not None or layer.add_zero_attn:
        flow.break_off(rows, f"{name} has separate or additional projections, so its heads keep their width")
    else:
        mixed = flow.elements.register((f"{name}.out_proj", "in"), width)
        _join_heads(flow, name, torch.cat([rows, mixed]).reshape(4, layer.num_heads, -1))
    for macs, line in zip(projected, read, strict=True):
        flow.add_product(Product(macs, _known((rows, line)), layer=name))
    flow.add_product(Product(out.numel() * width, _known((mixed, made)), layer=name))
    flow.give_line(out, out.ndim - 1, made)


def _join_heads(flow: Flow, name: str, grid: Tensor) -> None:
    """Couple the channels (queries, keys, values and the projection's inputs; heads; width) of an attention layer."""
    if flow.whole_heads:
        heads = grid.transpose(0, 1).flatten(1)
        flow.elements.join(heads[:, :1], heads)
        flow.heads.append(heads[:, 0])
        flow.counted.append((name, "num_heads", heads[:, 0]))
    else:
        flow.elements.join(grid[:1, :1], grid)
