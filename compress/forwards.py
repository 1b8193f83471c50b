"""What a forward takes for granted: widths kept as attributes, scales of attention, and modules that do not bend."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pruneport.compress.attention import HEAD_COUNTS
from pruneport.compress.coupling import Coupling
from pruneport.compress.groups import Group
from pruneport.compress.layers import LAYERS, parts_by_name

__all__ = ["Attributes", "attributes_for", "inflexible_groups", "rescale_keys"]

Attributes = dict[str, dict[str, int | tuple[int, ...]]]
"""Module -> attribute -> its value in the pruned network."""

_COUNTS = ("num_groups", "groups", "radix", "cardinality")

_Size = tuple[int, int]
"""Of a tensor that a forward made: its dense size along its channels, and the one in the pruned network."""


def attributes_for(network: nn.Module, coupling: Coupling, kept: Callable[[int], bool]) -> Attributes:
    """Find the attributes that hold widths which its forward asks for, and their new values.

    Args:
        network: The dense network.
        coupling: What its forward does.
        kept: Whether a unit stays.

    Returns:
        Attributes whose value is a width that the module's own forward makes a tensor of, where that width,
        if it changes, has one new value; lists of such widths, in order; and numbers of heads, where whole heads go.
    """
    widths: dict[str, list[_Size]] = defaultdict(list)
    counts: dict[str, list[_Size]] = defaultdict(list)
    for place, units in coupling.sized:
        heads = coupling.heads.issuperset(units) and len(set(units)) == len(units)
        (counts if heads else widths)[place].append((len(units), sum(map(kept, units))))
    found: Attributes = {}
    for name in dict.fromkeys(place for place, _ in coupling.sized):
        module = network.get_submodule(name)
        changed = {
            attribute: new
            for attribute, value in vars(module).items()
            if (sizes := _sizes_for(attribute, module, widths[name], counts[name]))
            and (new := _renewed(value, sizes)) is not None
            and new != value
        }
        if changed:
            found[name] = changed
    return found


def _sizes_for(attribute: str, module: nn.Module, widths: list[_Size], counts: list[_Size]) -> list[_Size]:
    if attribute in HEAD_COUNTS:
        return counts
    return [] if attribute in _COUNTS or isinstance(module, LAYERS) else widths


def _renewed(value: Any, sizes: Sequence[_Size]) -> int | tuple[int, ...] | None:
    if type(value) is int:
        new = {left for dense, left in sizes if dense == value != left}
        return new.pop() if len(new) == 1 else None
    if isinstance(value, list | tuple) and len(value) > 1 and all(type(part) is int for part in value):
        for start in range(len(sizes) - len(value) + 1):
            run = sizes[start : start + len(value)]
            if [dense for dense, _ in run] == list(value):
                return tuple(left for _, left in run)
    return None


def rescale_keys(pruned: nn.Module, coupling: Coupling, kept: Callable[[int], bool]) -> None:
    """Keep logits what they were where an attention divides them by the root of its own, now smaller, width."""
    for places in coupling.scaled:
        left = sum(map(kept, places))
        if left == len(places):
            continue
        factor = math.sqrt(left / len(places))
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
    axis = next(axis for owner, axis in coupling.sizes if owner == name and axis != "in")
    left = sorted(
        position for unit, axes in coupling.units.items() if kept(unit) for position in axes.get((name, axis), ())
    )
    part: Any = parts_by_name(pruned)[name]
    tensors, dim = [part], 0
    if isinstance(part, Tensor):  # a bare parameter, whose elements are numbered entry by entry
        dim = int(axis[-1])
        shape = [*part.shape[:dim], coupling.sizes[name, axis], *part.shape[dim + 1 :]]
        positions = sorted(set(np.unravel_index(positions, shape)[dim].tolist()))
    else:
        tensors = [tensor for tensor in (part.weight, part.bias) if tensor is not None]
    place = {position: row for row, position in enumerate(left)}
    chosen = torch.tensor([place[position] for position in positions])
    for tensor in tensors:
        tensor.data.movedim(dim, 0)[chosen] *= factor


def inflexible_groups(
    network: nn.Module, coupling: Coupling, groups: Sequence[Group], pruned: Sequence[int], stack: Sequence[str]
) -> list[int]:
    """The groups to leave dense after a pruned network failed: those that the failing forward shapes, and their like.

    Args:
        network: The dense network.
        coupling: What its forward does.
        groups: All groups.
        pruned: Indices of those that were pruned.
        stack: The modules that were running, outermost first.

    Returns:
        Indices out of ``pruned``; all of them where the failure cannot be placed.
    """
    for level in reversed(stack):
        module = network.get_submodule(level)
        if isinstance(module, LAYERS):
            continue
        shaped = {unit for place, units in coupling.sized if place == level for unit in units}
        inside = [index for index in pruned if any(_under(member.module, level) for member in groups[index].members)]
        found = [index for index in pruned if shaped.intersection(groups[index].units)] or (inside if level else [])
        if found:
            places = [name for name, other in network.named_modules() if type(other) is type(module)]
            own = {(m.module, m.axis) for index in found for m in groups[index].members if _under(m.module, level)}
            alike = {(place + name.removeprefix(level), axis) for place in places for name, axis in own}
            like = {index for index in pruned if any((m.module, m.axis) in alike for m in groups[index].members)}
            return sorted(like.union(found))
    return list(pruned)


def _under(name: str, level: str) -> bool:
    return name.startswith(f"{level}.") or not level
