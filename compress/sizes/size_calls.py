"""Functions that a forward gives sizes to: where the numbers stand in a call, and what they measure.

A *slot* is one such number. The tracer reads the slots of every call of a module; a pruned network runs the same
forward with the slots of some calls replaced (see ``hardcoded_widths``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pruneport.compress.sizes.arguments import argument_at

__all__ = ["SIZE_CALLS", "Measured", "SizeCall", "Slots"]

Slots = Mapping[int, int]
"""New numbers by their slot."""


@dataclass(frozen=True)
class Measured:
    """What a slot measures: how many places of a tensor's dimension lie in ``start:stop``."""

    slot: int
    value: Any
    tensor: Tensor
    dim: int
    start: int
    stop: int


@dataclass(frozen=True)
class SizeCall:
    """A function that is given sizes.

    Attributes:
        measure: What the slots of a call mean: (args, kwargs, output).
        replace: The call's arguments with other numbers: (args, kwargs, slots) to (args, kwargs).
        new: Whether the function makes the dimensions that the slots are sizes of.
    """

    measure: Callable[[Any, Any, Any], list[Measured]]
    replace: Callable[[Any, Any, Slots], tuple[Any, Any]]
    new: bool = False


def _whole(slot: int, value: Any, tensor: Tensor, dim: int) -> Measured:
    return Measured(slot, value, tensor, dim % tensor.ndim, 0, tensor.shape[dim])


def _listed(given: Sequence[Any]) -> tuple[list[Any], bool]:
    """Sizes given one by one or as one list, and whether it was a list."""
    if len(given) == 1 and isinstance(given[0], tuple | list):
        return list(given[0]), True
    return list(given), False


def _shape_call(keyword: str, first: int = 1, last: int | None = None, new: bool = False) -> SizeCall:
    """Like ``reshape``: sizes from the ``first`` argument on, up to the ``last``, or in a keyword.

    Args:
        keyword: The argument's name.
        first: Its place.
        last: The place behind it, where others follow.
        new: Whether the function makes these dimensions, so that nothing lies along them yet.
    """

    def sizes(args: Any, kwargs: Any) -> list[Any]:
        given = _listed(args[first:last])[0] if len(args) > first else _listed([kwargs.get(keyword, ())])[0]
        return [] if given and isinstance(given[0], torch.dtype) else given

    def measure(args: Any, kwargs: Any, output: Any) -> list[Measured]:
        given = sizes(args, kwargs)
        start = (args[1] if len(args) > 1 else kwargs["dim"]) % args[0].ndim if first == 2 else 0
        return [_whole(slot, value, output, start + slot) for slot, value in enumerate(given)]

    def replace(args: Any, kwargs: Any, slots: Slots) -> tuple[Any, Any]:
        given = [slots.get(slot, value) for slot, value in enumerate(sizes(args, kwargs))]
        if len(args) > first:
            return (*args[:first], tuple(given), *(() if last is None else args[last:])), kwargs
        return args, {**kwargs, keyword: tuple(given)}

    return SizeCall(measure, replace, new)


def _measure_repeat(args: Any, kwargs: Any, output: Any) -> list[Measured]:
    """Only where one entry is repeated is the count a size."""
    before = [1] * (output.ndim - args[0].ndim) + list(args[0].shape)
    return [part for part in _REPEAT.measure(args, kwargs, output) if before[part.dim] == 1]


def _split_sizes(args: Any, kwargs: Any) -> Any:
    """The sizes that a split is given, by any of their names."""
    for keyword in ("split_size_or_sections", "split_size", "split_sizes"):
        if keyword in kwargs:
            return kwargs[keyword]
    return args[1]


def _measure_split(args: Any, kwargs: Any, output: Any) -> list[Measured]:
    given, dim = _split_sizes(args, kwargs), argument_at(args, kwargs, 2, "dim", 0)
    values = given if isinstance(given, tuple | list) else [given] * len(output)
    return [_whole(slot, value, part, dim) for slot, (value, part) in enumerate(zip(values, output, strict=True))]


def _replace_split(args: Any, kwargs: Any, slots: Slots) -> tuple[Any, Any]:
    """A split into parts that may have become unequal."""
    given, dim = _split_sizes(args, kwargs), argument_at(args, kwargs, 2, "dim", 0)
    if isinstance(given, tuple | list):
        return (args[0], [slots.get(slot, value) for slot, value in enumerate(given)], dim), {}
    size = args[0].shape[dim]
    if set(slots) == set(range(len(slots))) and sum(slots.values()) == size:  # parts that have become unequal
        return (args[0], [slots[slot] for slot in range(len(slots))], dim), {}
    return (args[0], next(iter(slots.values())), dim), {}


def _indices(args: Any) -> tuple[Any, ...]:
    return args[1] if isinstance(args[1], tuple) else (args[1],)


def _indexed_dims(tensor: Tensor, indices: Sequence[Any]) -> list[int | None]:
    """The dimension that each index is for; None where it is for none, or that cannot be told."""
    taken = [1 if index is not None and index is not Ellipsis else 0 for index in indices]
    if any(isinstance(index, Tensor | list | bool) for index in indices):
        return [None] * len(indices)
    dims: list[int | None] = []
    place = 0
    for number, index in enumerate(indices):
        if index is Ellipsis:
            dims.append(None)
            place = tensor.ndim - sum(taken[number + 1 :])
        else:
            dims.append(place if isinstance(index, slice) else None)
            place += taken[number]
    return dims


def _measure_getitem(args: Any, kwargs: Any, output: Any) -> list[Measured]:
    """The bounds of slices; their slots are two an index."""
    tensor, indices = args[0], _indices(args)
    found = []
    for number, (index, dim) in enumerate(zip(indices, _indexed_dims(tensor, indices), strict=True)):
        if dim is None or index.step not in (None, 1):
            continue
        start, stop, _ = index.indices(tensor.shape[dim])
        for slot, value, end in ((2 * number, index.start, start), (2 * number + 1, index.stop, stop)):
            if isinstance(value, int) and value != 0:
                found.append(Measured(slot, value, tensor, dim, 0, max(0, end)))
    return found


def _replace_getitem(args: Any, kwargs: Any, slots: Slots) -> tuple[Any, Any]:
    """The same slices with other bounds."""
    indices = list(_indices(args))
    for number, index in enumerate(indices):
        if isinstance(index, slice):
            start, stop = (slots.get(2 * number + end, value) for end, value in enumerate((index.start, index.stop)))
            indices[number] = slice(start, stop, index.step)
    return (args[0], tuple(indices), *args[2:]), kwargs


def _measure_narrow(args: Any, kwargs: Any, output: Any) -> list[Measured]:
    """Start and length, which a narrowed tensor is given."""
    dim, start = argument_at(args, kwargs, 1, "dim"), argument_at(args, kwargs, 2, "start")
    length = argument_at(args, kwargs, 3, "length")
    if not isinstance(start, int) or start < 0:
        return []
    return [
        Measured(0, start, args[0], dim % args[0].ndim, 0, int(start)),
        Measured(1, length, args[0], dim % args[0].ndim, int(start), int(start) + int(length)),
    ]


def _replace_narrow(args: Any, kwargs: Any, slots: Slots) -> tuple[Any, Any]:
    dim, start = argument_at(args, kwargs, 1, "dim"), argument_at(args, kwargs, 2, "start")
    return (args[0], dim, slots.get(0, start), slots.get(1, argument_at(args, kwargs, 3, "length"))), {}


def _measure_normalized(args: Any, kwargs: Any, output: Any) -> list[Measured]:
    given = argument_at(args, kwargs, 1, "normalized_shape")
    return [_whole(slot, value, output, slot - len(given)) for slot, value in enumerate(given)]


def _replace_normalized(args: Any, kwargs: Any, slots: Slots) -> tuple[Any, Any]:
    """A norm over other widths."""
    given = [slots.get(slot, value) for slot, value in enumerate(argument_at(args, kwargs, 1, "normalized_shape"))]
    if len(args) > 1:
        return (args[0], given, *args[2:]), kwargs
    return args, {**kwargs, "normalized_shape": given}


def _measure_groups(args: Any, kwargs: Any, output: Any) -> list[Measured]:
    groups = argument_at(args, kwargs, 6, "groups", 1)
    depthwise = groups == args[0].shape[-3] == output.shape[-3] and groups > 1
    return [_whole(0, groups, output, output.ndim - 3)] if depthwise else []


def _replace_groups(args: Any, kwargs: Any, slots: Slots) -> tuple[Any, Any]:
    if len(args) > 6:
        return (*args[:6], slots.get(0, args[6]), *args[7:]), kwargs
    return args, {**kwargs, "groups": slots.get(0, kwargs.get("groups", 1))}


def _replace_scale(args: Any, kwargs: Any, slots: Slots) -> tuple[Any, Any]:
    return args, {**kwargs, "scale": slots[0] ** -0.5}


_RESHAPE = _shape_call("shape")
_MAKE = _shape_call("size", first=0, new=True)
_REPEAT = _shape_call("repeats")
_SPLIT = SizeCall(_measure_split, _replace_split)
_NARROW = SizeCall(_measure_narrow, _replace_narrow)
_NORM = SizeCall(_measure_normalized, _replace_normalized)
_SLICE = SizeCall(_measure_getitem, _replace_getitem)

SIZE_CALLS: Mapping[Any, SizeCall] = MappingProxyType(
    {
        Tensor.reshape: _RESHAPE,
        torch.reshape: _RESHAPE,
        Tensor.view: _shape_call("size"),
        Tensor.unflatten: _shape_call("sizes", first=2),
        torch.unflatten: _shape_call("sizes", first=2),
        Tensor.expand: _shape_call("size"),
        Tensor.split: _SPLIT,
        torch.split: _SPLIT,
        Tensor.split_with_sizes: _SPLIT,
        torch.split_with_sizes: _SPLIT,
        Tensor.__getitem__: _SLICE,
        Tensor.__setitem__: _SLICE,
        Tensor.narrow: _NARROW,
        torch.narrow: _NARROW,
        F.layer_norm: _NORM,
        F.rms_norm: _NORM,
        F.conv2d: SizeCall(_measure_groups, _replace_groups),
        F.scaled_dot_product_attention: SizeCall(lambda args, kwargs, output: [], _replace_scale),
        Tensor.repeat: SizeCall(_measure_repeat, _REPEAT.replace, new=True),
        torch.zeros: _MAKE,
        torch.ones: _MAKE,
        torch.empty: _MAKE,
        torch.rand: _MAKE,
        torch.randn: _MAKE,
        torch.full: _shape_call("size", first=0, last=1, new=True),
        Tensor.new_zeros: _shape_call("size", new=True),
        Tensor.new_ones: _shape_call("size", new=True),
        Tensor.new_empty: _shape_call("size", new=True),
        Tensor.new_full: _shape_call("size", last=2, new=True),
    }
)
