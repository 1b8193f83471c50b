"""What a forward takes for granted: widths kept as attributes or computed from others, and scales of attention."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pruneport.compress.graph.coupling import CountedSize, Coupling
from pruneport.compress.resize.layers import parts_by_name
from pruneport.compress.sizes.traced_sizes import AttributeSize, Leaf, QueriedSize, evaluate, leaves_of

__all__ = [
    "Attributes",
    "ForwardChanges",
    "HeldAttributes",
    "Sizes",
    "fit_forwards",
    "held_attributes",
    "rescale_keys",
]

Attributes = dict[str, dict[str, int | tuple[int, ...]]]
"""Module -> attribute -> its value in the pruned network."""

HeldAttributes = Mapping[str, Mapping[str, Any]]
"""Module -> attribute -> what it holds in the dense network: an integer, or a list or tuple of them."""

Sizes = dict[str, dict[str, dict[int, int]]]
"""Module -> call of its forward that takes or returns sizes (see ``call_site``) -> slot -> size when pruned."""


@dataclass(frozen=True, kw_only=True)
class ForwardChanges:
    """What forwards take for granted, in the pruned network.

    Attributes:
        attributes: Attributes that hold a width, with their new values.
        sizes: Sizes that the forward computes otherwise, call by call (see ``hardcoded_widths``).
    """

    attributes: Attributes
    sizes: Sizes


def fit_forwards(
    held: HeldAttributes, coupling: Coupling, kept: Callable[[int], bool], dense_numbers: bool = False
) -> ForwardChanges:
    """Find what must be changed so that every forward asks for the sizes that are there, and scales as it did.

    An attribute is set anew where the forward uses it as one width and as nothing else. A size that the pruned network
    would compute otherwise (from the width of another tensor, say) is replaced in its call. Where a real number is
    computed from a size, such as the root of an attention head's width, it stays the dense network's.

    Args:
        held: What the attributes hold in the dense network (see ``held_attributes``).
        coupling: What its forward does.
        kept: Whether a unit stays.
        dense_numbers: Whether every attribute and every size asked for stays the dense network's, and all sizes given
            to functions are replaced: for forwards that compute with a size where that cannot be seen.
    """
    numbers = [*coupling.numbers, *([used.expression for used in coupling.used_sizes] if dense_numbers else ())]
    pinned = {leaf for expression in numbers for leaf in leaves_of(expression)}
    pinned |= set(coupling.asked_sizes) if dense_numbers else set()
    wanted = _wanted(coupling, kept)
    attributes = {leaf: sizes.pop() for leaf, sizes in wanted.items() if len(sizes) == 1 and leaf not in pinned}

    def value_of(leaf: Leaf) -> int:
        if isinstance(leaf, AttributeSize):
            return attributes.get(leaf) or _attribute(held, leaf)
        asked = coupling.asked_sizes[leaf]
        return asked.value if leaf in pinned else _left(asked, kept)

    for left, right in coupling.compared:  # a forward that insists on a width
        if evaluate(left, value_of) != evaluate(right, value_of):
            pinned.update(leaf for side in (left, right) for leaf in leaves_of(side))
            attributes = {leaf: size for leaf, size in attributes.items() if leaf not in pinned}
    sizes: dict[tuple[str, str, int], set[int]] = defaultdict(set)
    for used in coupling.used_sizes:
        size, given = _left(used, kept), evaluate(used.expression, value_of)
        if given is not None and given < 0:
            given += sum(map(kept, used.units))
        changed = not all(map(kept, used.units)) or given != used.value
        if changed and given != size:
            sizes[used.leaf.module, used.leaf.call, used.leaf.slot].add(size)
    for leaf in pinned:
        if (
            isinstance(leaf, QueriedSize)
            and _left(coupling.asked_sizes[leaf], kept) != coupling.asked_sizes[leaf].value
        ):
            sizes[leaf.module, leaf.call, leaf.slot].add(coupling.asked_sizes[leaf].value)
    by_call: Sizes = defaultdict(lambda: defaultdict(dict))
    for (module, call, slot), values in sizes.items():
        if len(values) == 1:  # else one module runs several times, with other widths
            by_call[module][call][slot] = values.pop()
    return ForwardChanges(
        attributes=_by_module(held, attributes) | _counts(coupling, kept),
        sizes={module: dict(calls) for module, calls in by_call.items()},
    )


def _left(size: CountedSize, kept: Callable[[int], bool]) -> int:
    """The size in the pruned network; one of several dimensions' product shrinks in proportion."""
    counted = size.units[size.start : size.stop]
    left = sum(map(kept, counted))
    of_product = size.start == 0 and size.stop == len(size.units) and size.value > len(size.units)
    return size.value // len(counted) * left if of_product else left


def _wanted(coupling: Coupling, kept: Callable[[int], bool]) -> dict[AttributeSize, set[int]]:
    """What every attribute would have to be for each of the widths that it is used as."""
    wanted: dict[AttributeSize, set[int]] = defaultdict(set)
    for used in coupling.used_sizes:
        if isinstance(used.expression, AttributeSize):
            wanted[used.expression].add(_left(used, kept))
    for left, right in coupling.compared:
        for one, other in ((left, right), (right, left)):
            if isinstance(one, AttributeSize) and isinstance(other, QueriedSize):
                wanted[one].add(_left(coupling.asked_sizes[other], kept))
    return wanted


def held_attributes(network: nn.Module, coupling: Coupling) -> HeldAttributes:
    """What the attributes hold that the forward takes sizes from, and those that count channels.

    Args:
        network: The dense network.
        coupling: What its forward does.
    """
    expressions = [used.expression for used in coupling.used_sizes]
    expressions += [*coupling.numbers, *(side for pair in coupling.compared for side in pair)]
    leaves = [leaf for expression in expressions for leaf in leaves_of(expression) if isinstance(leaf, AttributeSize)]
    names = [(leaf.module, leaf.name) for leaf in leaves] + [(module, name) for module, name, _ in coupling.counted]
    held: dict[str, dict[str, Any]] = defaultdict(dict)
    for module, name in names:
        held[module][name] = getattr(network.get_submodule(module), name)
    return held


def _attribute(held: HeldAttributes, leaf: AttributeSize) -> int:
    value = held[leaf.module][leaf.name]
    return int(value if leaf.index is None else value[leaf.index])


def _by_module(held: HeldAttributes, sizes: Mapping[AttributeSize, int]) -> Attributes:
    """New values of the attributes that change, whole lists of them in order."""
    by_module: Attributes = defaultdict(dict)
    for leaf, size in sizes.items():
        if size == _attribute(held, leaf):
            continue
        if leaf.index is None:
            by_module[leaf.module][leaf.name] = size
        else:
            listed = list(by_module[leaf.module].get(leaf.name) or held[leaf.module][leaf.name])  # type: ignore[arg-type]
            listed[leaf.index] = size
            by_module[leaf.module][leaf.name] = tuple(listed)
    return dict(by_module)


def _counts(coupling: Coupling, kept: Callable[[int], bool]) -> Attributes:
    return {
        module: {name: sum(map(kept, units))} for module, name, units in coupling.counted if not all(map(kept, units))
    }


def rescale_keys(
    pruned: nn.Module,
    coupling: Coupling,
    kept: Callable[[int], bool],
    kept_before: Callable[[int], bool] = lambda unit: True,
) -> None:
    """Keep logits what they were where an attention divides them by the root of its own, now smaller, width.

    Args:
        pruned: The network without the units that do not stay.
        coupling: What the dense network's forward does.
        kept: Whether a unit stays.
        kept_before: Whether it was there when the keys were last scaled.
    """
    for places in coupling.scaled_keys:
        left, before = sum(map(kept, places)), sum(map(kept_before, places))
        if left == before:
            continue
        factor = math.sqrt(left / before)
        rows: dict[str, list[int]] = defaultdict(list)
        for unit, where in places.items():
            for (name, _), position in where if kept(unit) else ():
                rows[name].append(position)
        for name, positions in rows.items():
            _scale_rows(pruned, coupling, name, sorted(positions), factor, kept)


def _scale_rows(
    pruned: nn.Module,
    coupling: Coupling,
    name: str,
    positions: Sequence[int],
    factor: float,
    kept: Callable[[int], bool],
) -> None:
    """Multiply the kept ones of a layer's positions by a factor, in place."""
    axis = next(axis for owner, axis in coupling.sizes if owner == name and axis != "in")
    left = sorted(
        position for unit, axes in coupling.units.items() if kept(unit) for position in axes.get((name, axis), ())
    )
    part: Any = parts_by_name(pruned)[name]
    tensors, dim = [part], 0
    if isinstance(part, Tensor):  # an unwrapped parameter, whose elements are numbered entry by entry
        dim = int(axis[-1])
        shape = [*part.shape[:dim], coupling.sizes[name, axis], *part.shape[dim + 1 :]]
        positions = sorted(set(np.unravel_index(positions, shape)[dim].tolist()))
    else:
        tensors = [tensor for tensor in (part.weight, part.bias) if tensor is not None]
    place = {position: row for row, position in enumerate(left)}
    chosen = torch.tensor([place[position] for position in positions])
    for tensor in tensors:
        tensor.data.movedim(dim, 0)[chosen] *= factor
