"""What each operation of torch does to the maps of channels (see ``flow``): one table, by the operator's name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pruneport.compress.flow import Flow, Map, Product, Sized
from pruneport.compress.layers import removed_whole

__all__ = ["LEAVES", "operate"]

_Conv = nn.modules.conv._ConvNd
_BatchNorm = nn.modules.batchnorm._NormBase
_Operation = Callable[[Flow, Any, Any, Any, Any], None]


def operate(flow: Flow, function: Any, args: Any, kwargs: Any, output: Any) -> None:
    """Follow one operation: give its outputs their maps and join what it couples."""
    name = str(function).split(".")[1]
    handler = _TABLE.get(name) or _TABLE.get(name.removesuffix("_"))
    if handler is None:
        handler = _combine if torch.Tag.pointwise in function.tags else _unknown
    handler(flow, function, args, kwargs, output)


def _argument(function: Any, args: Any, kwargs: Any, name: str, default: Any = None) -> Any:
    for place, argument in enumerate(function._schema.arguments):
        if argument.name == name:
            return args[place] if place < len(args) and not argument.kwarg_only else kwargs.get(name, default)
    return default


def _tensors(values: Any) -> list[Tensor]:
    found: list[Tensor] = []
    tree_map(lambda value: found.append(value) if isinstance(value, Tensor) else None, values)
    return found


def _unknown(flow: Flow, function: Any, args: Any, kwargs: Any, output: Any) -> None:
    for tensor in _tensors((args, kwargs)):
        for entry in flow.maps(tensor):
            if not entry.bare:
                flow.break_off(entry.compact(), f"{flow.place or 'the network'} calls {function}, which is not known")


def _ignore(flow: Flow, function: Any, args: Any, kwargs: Any, output: Any) -> None:
    """The outputs hold no channels."""


# Entries combined one by one


def _combine(flow: Flow, function: Any, args: Any, kwargs: Any, output: Any) -> None:
    tensors = _tensors((args, kwargs))
    for out in _tensors(output):
        flow.give(out, _meeting(flow, tensors, out.shape))
    if str(function).startswith(("aten.add", "aten.sub")):
        _note_added(flow, tensors)


def _note_added(flow: Flow, tensors: Sequence[Tensor]) -> None:
    """Sums of channels that were made in different places; x + f(x) with x's own channels is no residual stream."""
    maps = [entry for tensor in tensors for entry in flow.maps(tensor) if not entry.bare]
    for entry in maps:
        for dim in flow.varies(entry):
            others = [other for other in maps if other is not entry and flow.varies(other) == (dim,)]
            if any(not torch.equal(entry.line(dim), other.line(dim)) for other in others):
                flow.added.append(entry.compact())


def _meeting(flow: Flow, tensors: Sequence[Tensor], shape: Sequence[int]) -> list[Map]:
    """Join what meets at the same place of the broadcast shape; return the maps of the result."""
    wide = [_broadcast(flow, tensor, shape) for tensor in tensors if tensor.ndim and not flow.owned(tensor)]
    result: dict[tuple[int, ...], Map] = {}
    for number, (_, maps) in enumerate(wide):
        for entry, dims in maps:
            if entry.bare:
                continue
            for other, (sizes, others) in enumerate(wide):
                if other != number and dims and sizes[dims[0]] > 1:
                    _meet(flow, entry, dims[0], others)
            if dims or shape == entry.labels.shape:
                result.setdefault(dims, entry)
    bare = [entry for _, maps in wide for entry, _ in maps if entry.bare]
    return list(result.values()) or bare


def _broadcast(flow: Flow, tensor: Tensor, shape: Sequence[int]) -> tuple[list[int], list[tuple[Map, tuple[int, ...]]]]:
    """The tensor's own sizes and its maps, on the dimensions of the result."""
    sizes = [1] * (len(shape) - tensor.ndim) + list(tensor.shape)
    maps = [Map(entry.labels.expand(tuple(shape)), entry.bare) for entry in flow.maps(tensor)]
    return sizes, [(entry, flow.varies(entry)) for entry in maps]


def _meet(flow: Flow, entry: Map, dim: int, others: Sequence[tuple[Map, tuple[int, ...]]]) -> None:
    line, partners = entry.line(dim), 0
    for other, dims in others:
        if other.bare and dim in dims:
            rows = other.rows(dim)
            flow.elements.join(line[:, None].expand_as(rows), rows)
        elif not other.bare and dims == (dim,):
            flow.elements.join(line, other.line(dim))
            alone = torch.cat([line[other.line(dim) == 0], other.line(dim)[line == 0]])
            flow.break_off(alone, _MEETS_FIXED.format(flow.place))
        else:
            continue
        partners += 1
    if not partners:
        flow.break_off(line, _MEETS_FIXED.format(flow.place))


_MEETS_FIXED = "{} combines its channels with values whose width does not follow any layer"

# Entries moved


def _move(flow: Flow, function: Any, args: Any, kwargs: Any, output: Any) -> None:
    tensor = next(iter(_tensors((args, kwargs))))
    outputs = _tensors(output)
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
    name = str(function).split(".")[1]
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
    return [part.long() for part in _tensors(moved)]


def _pad(flow: Flow, function: Any, args: Any, kwargs: Any, output: Any) -> None:
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


def _shape(flow: Flow, function: Any, args: Any, kwargs: Any, output: Any) -> None:
    """A move after which channels may lie on several dimensions: all but one are joined."""
    _move(flow, function, args, kwargs, output)
    for out in _tensors(output):
        for entry in flow.maps(out):
            dims = () if entry.bare else flow.varies(entry)
            if len(dims) == 1:
                line = entry.line(dims[0])
                flow.sized.append(Sized(flow.place, len(line), line))


def _settle(flow: Flow, entry: Map) -> None:
    """Where channels lie on several dimensions, such as heads and their width, keep the longest: the last of equals.

    A removal must leave a full grid, so what shares a place on the dimension that is kept goes together.
    """
    dims = () if entry.bare else flow.varies(entry)
    if len(dims) > 1:
        kept = max(dims, key=lambda dim: (entry.labels.shape[dim], dim))
        rows = entry.rows(kept)
        flow.elements.join(rows[:, :1].expand_as(rows), rows)


def _split(flow: Flow, function: Any, args: Any, kwargs: Any, output: Any) -> None:
    """Equal parts of a split without sizes stay equal."""
    _shape(flow, function, args, kwargs, output)
    dim = _argument(function, args, kwargs, "dim", 0)
    parts = _tensors(output)
    lines = [found.line(dim) for part in parts if (found := flow.map_along(part, dim)) is not None and not found.bare]
    if len(lines) == len(parts) and len({len(line) for line in lines}) == 1:
        for line in lines[1:]:
            flow.elements.join(lines[0], line)


def _concatenate(flow: Flow, function: Any, args: Any, kwargs: Any, output: Any) -> None:
    parts = [part for part in _tensors(args) if part.numel()]
    dim = _argument(function, args, kwargs, "dim", 0) % output.ndim
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
            _share(flow, parts, other, output, other)


def _stack(flow: Flow, function: Any, args: Any, kwargs: Any, output: Any) -> None:
    parts = _tensors(args)
    dim = _argument(function, args, kwargs, "dim", 0) % output.ndim
    flow.give(output, [])
    if not _only_bare(flow, parts, lambda labels: torch.stack(labels, dim), output):
        for own in range(output.ndim - 1):
            _share(flow, parts, own, output, own + (own >= dim))


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


def _share(flow: Flow, parts: Sequence[Tensor], dim: int, output: Tensor, out_dim: int) -> None:
    """Parts side by side have the same sizes on the other dimensions: what is there goes together."""
    found = [flow.map_along(part, dim) for part in parts]
    first = next((entry for entry in found if entry is not None and not entry.bare), None)
    if first is None:
        return
    line = first.line(dim)
    flow.give_line(output, out_dim, line)
    for entry in found:
        if entry is None:
            flow.break_off(line, _MEETS_FIXED.format(flow.place))
        else:
            rows = entry.rows(dim)
            flow.elements.join(line[:, None].expand_as(rows), rows)


def _write(flow: Flow, function: Any, args: Any, kwargs: Any, output: Any) -> None:
    """Into another tensor: understood where that is read as a whole, channel by channel."""
    target, source = args[0], args[1]
    if flow.maps(target):
        flow.give(output, _meeting(flow, [target, source], target.shape))
    elif isinstance(source, Tensor) and target._base is None:
        flow.give(output, _meeting(flow, [source], target.shape))
    elif isinstance(source, Tensor):
        for entry in flow.maps(source):
            if not entry.bare:
                flow.break_off(entry.compact(), f"{flow.place or 'the network'} writes its channels into a slice")


# Entries mixed


def _pool(flow: Flow, function: Any, args: Any, kwargs: Any, output: Any) -> None:
    """Places are mixed, each channel for itself: dimensions from the third on."""
    source, out = _tensors((args, kwargs))[0], _tensors(output)[0]
    first = 2 if source.ndim > 3 or out.shape[:2] == source.shape[:2] else 1
    maps = []
    for entry in flow.maps(source):
        dims = flow.varies(entry)
        if entry.bare:
            for channel in entry.labels.flatten(0, first - 1).reshape(-1, *entry.labels.shape[first:]):
                flow.elements.join(channel.flatten()[:1].expand(channel.numel()), channel.flatten())
        elif dims and dims[0] >= first:
            flow.break_off(entry.compact(), f"{flow.place} mixes its channels by {function}")
            continue
        inner = entry.labels
        for dim in range(first, source.ndim):
            inner = inner.narrow(dim, 0, 1)
        maps.append(Map(inner.expand(out.shape), entry.bare))
    flow.give(out, maps)


def _reduce(flow: Flow, function: Any, args: Any, kwargs: Any, output: Any) -> None:
    source = _tensors((args, kwargs))[0]
    dims = _argument(function, args, kwargs, "dim")
    dims = list(range(source.ndim)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else list(dims)
    dims = sorted({dim % source.ndim for dim in dims}) if source.ndim else []
    maps = []
    for entry in flow.maps(source):
        varies = flow.varies(entry)
        if not entry.bare and set(varies) & set(dims):
            if not str(function).startswith("aten.sum"):
                flow.averaged.append(entry.compact())
            continue
        labels = entry.labels
        for dim in reversed(dims):
            labels = labels.narrow(dim, 0, 1) if labels.shape[dim] else labels
        maps.append(Map(labels, entry.bare))
    for out in _tensors(output):
        shaped = []
        for entry in maps:
            labels = entry.labels
            if out.ndim < source.ndim:
                for dim in reversed(dims):
                    labels = labels.select(dim, 0)
            shaped.append(Map(labels, entry.bare))
        flow.give(out, shaped)


def _normalise(flow: Flow, function: Any, args: Any, kwargs: Any, output: Any) -> None:
    """Softmax and the like: over channels, removing one differs from zeroing it."""
    source = args[0]
    dim = _argument(function, args, kwargs, "dim", -1) % max(1, source.ndim)
    for entry in flow.maps(source):
        if not entry.bare and dim in flow.varies(entry):
            flow.averaged.append(entry.compact())
    flow.give(output, flow.maps(source))


def _fold(flow: Flow, function: Any, args: Any, kwargs: Any, output: Any) -> None:
    """Overlapping windows summed up again: (B, C * places, windows) to (B, C, H, W)."""
    source = args[0]
    for entry in flow.maps(source):
        labels = entry.labels.reshape(source.shape[0], output.shape[1], -1, source.shape[-1])
        whole = Map(labels)
        if flow.varies(whole) not in ((), (1,)):
            flow.break_off(entry.compact(), f"{flow.place} mixes its channels by {function}")
        else:
            flow.give_line(output, 1, whole.line(1))


def _embed(flow: Flow, function: Any, args: Any, kwargs: Any, output: Any) -> None:
    table, rows = args[0], args[1]
    flow.give(output, [Map(entry.labels[rows], entry.bare) for entry in flow.maps(table)])


# Layers


def _read(flow: Flow, tensor: Tensor, dim: int, elements: Callable[[], Tensor], label: str) -> bool:
    """Join a tensor's channels along ``dim`` with a layer's elements; False where it has none there."""
    entry = flow.map_along(tensor, dim)
    if entry is None:
        return False
    rows = entry.rows(dim % tensor.ndim) if entry.bare else entry.line(dim)[:, None]
    own = elements()
    if len(own) != len(rows):
        flow.break_off(rows, f"{label} reads {len(rows)} channels as {len(own)}")
        return False
    flow.elements.join(own[:, None].expand_as(rows), rows)
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


def _convolve(flow: Flow, function: Any, args: Any, kwargs: Any, output: Any) -> None:
    source, weight = args[0], args[1]
    flow.give(output, [])
    name = flow.layer_of(weight, (_Conv,))
    if name is None:
        if _argument(function, args, kwargs, "groups", 1) == source.shape[1] == output.shape[1]:
            _filter(flow, source, weight, output)
        else:
            _multiply_bare(flow, source, 1)
        return
    layer: Any = flow.modules[name]
    _pass_on(flow, source, output, 1, f"{name} mixes its channels as if they were places")
    depthwise = layer.groups > 1 and layer.groups == layer.in_channels
    if not depthwise:
        _read(flow, source, 1, lambda: flow.elements.register((name, "in"), layer.in_channels), name)
        out = flow.elements.register((name, "out"), layer.out_channels)
        if (name, "in") in flow.elements.offsets and removed_whole(layer):
            inputs = flow.elements.register((name, "in"), layer.in_channels).reshape(layer.groups, -1)
            both = torch.cat([inputs, out.reshape(layer.groups, -1)], 1)
            flow.elements.join(both[:, :1].expand_as(both), both)
    else:
        out = flow.elements.register((name, "channels"), layer.out_channels)
        fed = _read(flow, source, 1, lambda: out[:: layer.out_channels // layer.in_channels], name)
        if not fed:
            flow.break_off(out, f"{name} reads channels whose width does not follow any layer")
        several = out.reshape(layer.in_channels, -1)
        flow.elements.join(several[:, :1].expand_as(several), several)
    flow.give_line(output, 1, out)


def _filter(flow: Flow, source: Tensor, weight: Tensor, output: Tensor) -> None:
    """Each channel filtered for itself, by a kernel that no layer owns (blurring, say)."""
    entry = flow.map_along(source, 1)
    if entry is None:
        return
    line = entry.line(1)
    kernel = flow.map_along(weight, 0)
    if kernel is not None:
        rows = kernel.rows(0)
        flow.elements.join(line[:, None].expand_as(rows), rows)
    flow.sized.append(Sized(flow.place, len(line), line))
    flow.give_line(output, 1, line)


def _multiply_bare(flow: Flow, source: Tensor, dim: int) -> None:
    entry = flow.map_along(source, dim)
    if entry is not None:
        flow.break_off(entry.compact(), f"{flow.place or 'the network'} multiplies its channels by a computed weight")


def _linear(flow: Flow, name: str, source: Tensor, output: Tensor, bias: Tensor | None) -> None:
    layer: Any = flow.modules[name]
    flow.give(output, [])
    _pass_on(flow, source, output, -1)
    for ridden in flow.maps(output):
        flow.riding[name] = ridden.line(flow.varies(ridden)[0])
    _read(flow, source, -1, lambda: flow.elements.register((name, "in"), layer.in_features), name)
    out = flow.elements.register((name, "out"), layer.out_features)
    if bias is not None and not flow.owned(bias):
        _read(flow, bias, -1, lambda: out, name)
    flow.give_line(output, output.ndim - 1, out)


def _multiply(flow: Flow, function: Any, args: Any, kwargs: Any, output: Any) -> None:
    """Matrix products: with a layer's weight, or of two tensors (…, I, K) and (…, K, J)."""
    *bias, left, right = args[:3] if str(function).startswith(("aten.addmm", "aten.baddbmm")) else args[:2]
    name = flow.layer_of(right, (nn.Linear,)) if flow.owned(right) or not flow.maps(right) else None
    if name is not None:
        _linear(flow, name, left, output, bias[0] if bias else None)
        return
    last = left.ndim - 1
    rows, columns = flow.map_along(left, last), flow.map_along(right, last - 1)
    for entry, other in ((rows, columns), (columns, rows)):
        if entry is not None and other is None and not entry.bare:
            flow.break_off(entry.compact(), f"{flow.place} multiplies its channels with values of a fixed width")
    if rows is not None and columns is not None:
        if rows.bare or columns.bare:
            for entry in (rows, columns):
                flow.break_off(entry.compact(), f"{flow.place} multiplies its channels by a bare parameter")
        else:
            flow.elements.join(rows.line(last), columns.line(last - 1))
    lines = (
        _line(rows, last),
        _line(flow.map_along(left, last - 1), last - 1),
        _line(flow.map_along(right, last), last),
    )
    flow.products.append(Product(output.numel() * left.shape[-1], tuple(line for line in lines if line is not None)))
    flow.give(output, [])
    for batch in range(last - 1):
        _share(flow, [left, right], batch, output, batch)
    for tensor, dim in ((left, last - 1), (right, last)):
        entry = flow.map_along(tensor, dim)
        if entry is not None and not entry.bare:
            flow.give_line(output, dim, entry.line(dim))
    if bias:
        flow.give(output, _meeting(flow, [output, bias[0]], output.shape))


def _line(entry: Map | None, dim: int) -> Tensor | None:
    return None if entry is None or entry.bare else entry.line(dim)


def _attend(flow: Flow, function: Any, args: Any, kwargs: Any, output: Any) -> None:
    """Fused attention of queries (…, L, E), keys (…, S, E) and values (…, S, V)."""
    query, key, value = args[:3]
    out = _tensors(output)[0]
    flow.give(out, [])
    heads, last = range(query.ndim - 2), query.ndim - 1
    width, other = flow.map_along(query, last), flow.map_along(key, last)
    if width is not None and other is not None and not width.bare and not other.bare:
        flow.elements.join(width.line(last), other.line(last))
    else:
        for entry in (width, other):
            if entry is not None:
                flow.break_off(entry.compact(), f"{flow.place} multiplies its channels by a bare parameter")
    for dim in heads:
        _share(flow, [query, key, value], dim, out, dim)
    entry = flow.map_along(value, last)
    places = query.numel() // query.shape[-1] * key.shape[-2]
    for macs, line in ((places * query.shape[-1], _line(width, last)), (places * value.shape[-1], _line(entry, last))):
        flow.products.append(Product(macs, () if line is None else (line,)))
    if entry is not None:
        flow.give_line(out, last, entry.line(last))
    mask = _argument(function, args, kwargs, "attn_mask")
    mask = mask if mask is not None else _argument(function, args, kwargs, "attn_bias")
    if isinstance(mask, Tensor):
        for dim in heads:
            own = dim - (query.ndim - mask.ndim)
            if own >= 0 and mask.shape[own] > 1:
                _share(flow, [query, mask.expand(*query.shape[:-2], *mask.shape[-2:])], dim, out, dim)


def _norm(kinds: tuple[type[nn.Module], ...], dim: int, averaging: bool = False) -> _Operation:
    def norm(flow: Flow, function: Any, args: Any, kwargs: Any, output: Any) -> None:
        source, out = args[0], _tensors(output)[0]
        weight = _argument(function, args, kwargs, "weight")
        if flow.owned(source):
            flow.standardised.add(flow.place)
            return
        name = flow.layer_of(weight, kinds)
        flow.give(out, [])
        over = _argument(function, args, kwargs, "normalized_shape", [0])
        entry = flow.map_along(source, dim) if source.ndim else None
        if len(over) > 1:
            for found in flow.maps(source):
                flow.break_off(found.compact(), f"{flow.place} normalises over channels and places at once")
            return
        _pass_on(flow, source, out, dim)
        if entry is None:
            return
        if averaging:
            flow.averaged.append(entry.compact())
        if name is None:
            for tensor in (weight, _argument(function, args, kwargs, "bias")):
                if tensor is not None:
                    _read(flow, source, dim, partial(_entries, flow, tensor), flow.place)
            flow.give_line(out, dim % source.ndim, entry.line(dim))
            return
        own = flow.elements.register((name, "channels"), source.shape[dim])
        _read(flow, source, dim, lambda: own, name)
        flow.give_line(out, dim % source.ndim, own)

    return norm


def _entries(flow: Flow, tensor: Tensor) -> Tensor:
    maps = flow.maps(tensor)
    return maps[0].labels.flatten() if maps else torch.zeros(tensor.numel(), dtype=torch.long)


def _prelu(flow: Flow, function: Any, args: Any, kwargs: Any, output: Any) -> None:
    source, weight = args[0], args[1]
    flow.give(output, flow.maps(source))
    name = flow.layer_of(weight, (nn.PReLU,))
    if name is not None and weight.numel() > 1:
        _read(flow, source, 1, lambda: flow.elements.register((name, "channels"), weight.numel()), name)


def _table() -> dict[str, _Operation]:
    table: dict[str, _Operation] = {}
    for handler, names in (
        (_move, "permute transpose t expand unsqueeze squeeze select unbind roll flip clone _to_copy contiguous alias "
                "detach index index_select repeat tile narrow diagonal movedim lift_fresh gather "
                "expand_as view_as repeat_interleave"),
        (_shape, "view _unsafe_view reshape slice split_with_sizes unfold im2col pixel_shuffle pixel_unshuffle "
                 "channel_shuffle native_channel_shuffle as_strided"),
        (_pad, "constant_pad_nd"),
        (_split, "split chunk"),
        (_concatenate, "cat concat"),
        (_stack, "stack"),
        (_write, "copy"),
        (_pool, "max_pool1d max_pool2d max_pool2d_with_indices avg_pool1d avg_pool2d adaptive_avg_pool1d "
                "_adaptive_avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d upsample_nearest2d "
                "_upsample_nearest_exact2d upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa "
                "_upsample_bicubic2d_aa reflection_pad2d replication_pad2d grid_sampler_2d mkldnn_max_pool2d"),
        (_reduce, "mean sum var std var_mean amax amin max min linalg_vector_norm norm logsumexp prod argmax"),
        (_normalise, "_softmax _log_softmax softmax cumsum"),
        (_fold, "col2im"),
        (_embed, "embedding"),
        (_combine, "hardswish hardsigmoid hardtanh mish gelu elu celu selu softplus log_sigmoid_forward leaky_relu "
                   "hardshrink threshold rrelu_with_noise where masked_fill"),
        (_convolve, "convolution conv2d conv1d mkldnn_convolution"),
        (_multiply, "mm bmm addmm baddbmm matmul linear"),
        (_attend, "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
                  "_scaled_dot_product_efficient_attention _scaled_dot_product_attention_math"),
        (_norm((_BatchNorm,), 1), "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training "
                                  "cudnn_batch_norm batch_norm instance_norm"),
        (_norm((nn.LayerNorm,), -1, averaging=True), "native_layer_norm _fused_rms_norm"),
        (_norm((nn.GroupNorm,), 1, averaging=True), "native_group_norm"),
        (_prelu, "_prelu_kernel prelu"),
        (_ignore, "arange empty zeros ones full rand randn zero fill new_zeros new_ones new_full new_empty zeros_like "
                  "ones_like empty_like full_like _local_scalar_dense scalar_tensor linspace eye bernoulli rand_like "
                  "randn_like random uniform normal nonzero item is_same_size tril triu meshgrid unique _assert_async "
                  "dropout native_dropout empty_strided sym_size topk sort argsort bucketize searchsorted"),
    ):  # fmt: skip
        table.update(dict.fromkeys(names.split(), handler))
    return table


_TABLE = _table()


# Modules that are not looked into


def _attend_by_layer(flow: Flow, name: str, layer: Any, inputs: Any, output: Any) -> None:
    """Torch's attention layer: its embedding follows the stream; its heads shrink in width, all of them together."""
    out = output[0]
    flow.give(out, [])
    if layer.in_proj_weight is None or layer.bias_k is not None or layer.add_zero_attn:
        for tensor in inputs[:3]:
            for entry in flow.maps(tensor):
                flow.break_off(entry.compact(), f"{name} has separate or additional projections")
        return
    for tensor in inputs[:3]:
        _read(flow, tensor, -1, lambda: flow.elements.register((name, "in"), layer.embed_dim), name)
    rows = flow.elements.register((name, "channels"), 3 * layer.embed_dim).reshape(-1, layer.head_dim)
    columns = flow.elements.register((f"{name}.out_proj", "in"), layer.embed_dim).reshape(-1, layer.head_dim)
    for head in (*rows[1:], *columns):
        flow.elements.join(rows[0], head)
    flow.give_line(out, out.ndim - 1, flow.elements.register((f"{name}.out_proj", "out"), layer.embed_dim))


LEAVES: dict[type[nn.Module], Callable[..., None]] = {nn.MultiheadAttention: _attend_by_layer}
