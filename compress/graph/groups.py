"""Coupled groups: which channels of which layers must be removed together.

One forward pass follows every channel to wherever it goes (see ``tracer``), so that a channel reached on two ways, a
split in uneven parts or a flatten before a linear layer all end up in exactly one unit.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from pruneport.arrays import IntArray
from pruneport.compress.graph.coupled_units import find_coupling
from pruneport.compress.graph.coupling import Coupling
from pruneport.compress.group_records import Member, Role
from pruneport.compress.resize.layers import block_count, parts_by_name
from pruneport.errors import PruningError

__all__ = ["Group", "Member", "Role", "find_groups", "group_units"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """Units (coupled channels) that occupy the same axes; any of them can be removed as a whole.

    Attributes:
        name: The first layer that produces the group's channels.
        width: Number of units.
        members: Every axis that shrinks with the group.
        role: ``filters`` ends inside a block; ``stream`` is a residual stream or feeds one; ``representation`` is what
            the output layer reads; ``output`` leaves the network.
        blocks: Units fall into this many equal runs that must keep the same count (grouped convolutions).
        reason: Why no unit can be removed correctly, or an empty string.
        units: Their numbers in the coupling.
        whole_attention_heads: Whether its units are whole attention heads.
        structure: Layer type and axis of every member, sorted: groups that share it are isomorphic.
    """

    name: str
    width: int
    members: tuple[Member, ...]
    role: Role
    blocks: int = 1
    reason: str = ""
    structure: tuple[tuple[str, str], ...] = ()
    units: tuple[int, ...] = ()
    whole_attention_heads: bool = False

    @property
    def span(self) -> int:
        """Channels in a row that a unit is made of in every layer: a convolution's channel group, an attention head."""
        return math.gcd(*(_run(m.positions) for m in self.members if not m.axis.startswith("dim"))) or 1

    @property
    def producers(self) -> tuple[str, ...]:
        """Layers whose outputs are the group's channels."""
        return tuple(member.module for member in self.members if member.axis == "out")

    @property
    def consumers(self) -> tuple[str, ...]:
        """Layers whose inputs are the group's channels."""
        return tuple(member.module for member in self.members if member.axis == "in")


def find_groups(network: nn.Module, example: Tensor) -> list[Group]:
    """Run the network once and return its groups, in the order in which their producers run.

    Args:
        network: In eval mode; it is left as it was.
        example: An input (B, C, H, W) that the network accepts.

    Raises:
        PruningError: The network does not run.
    """
    return group_units(network, find_coupling(network, example))


def group_units(network: nn.Module, coupling: Coupling) -> list[Group]:
    """The groups of a network whose coupling is known.

    Raises:
        PruningError: It has no layers that could be pruned.
    """
    if not coupling.units:
        raise PruningError("no convolution or linear layer was found on the way from the input to the outputs.")
    order = coupling.order
    layers = parts_by_name(network)
    by_axes: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for unit, axes in coupling.units.items():
        by_axes[tuple((key, len(positions)) for key, positions in axes.items())].append(unit)
    groups = _assign_roles([_group(units, coupling, layers) for units in by_axes.values()], coupling)
    return sorted(groups, key=lambda group: order.get(group.name, len(order)))


def _group(
    units: list[int],
    coupling: Coupling,
    layers: Mapping[str, nn.Module | Tensor],
) -> Group:
    """The group of units that are coupled in the same layers."""
    members = tuple(
        Member(
            module=name,
            axis=axis,  # type: ignore[arg-type]
            size=coupling.sizes[name, axis],
            positions=np.array([coupling.units[unit][name, axis] for unit in units], dtype=np.int64),
        )
        for name, axis in coupling.units[units[0]]
    )
    reason = next((coupling.unprunable[unit] for unit in units if unit in coupling.unprunable), "")
    blocks, block_reason = _blocks(members, layers, len(units), coupling.whole_channel_groups)
    producers = [m.module for m in members if m.axis == "out"] or [members[0].module]
    return Group(
        name=min(producers, key=lambda name: coupling.order.get(name, len(coupling.order))),
        width=len(units),
        members=members,
        role=_end(coupling, units),
        units=tuple(units),
        whole_attention_heads=coupling.attention_heads.issuperset(units),
        blocks=blocks,
        reason=reason or block_reason,
        structure=tuple(sorted((_kind(layers[m.module]), m.axis) for m in members)),
    )


def _end(coupling: Coupling, units: list[int]) -> Role:
    """Whether the group's channels leave the network; else it is taken to end inside a block."""
    if coupling.output.intersection(units):
        return "output"
    return "representation" if coupling.representation.intersection(units) else "filters"


def _run(positions: IntArray) -> int:
    """The length that all runs of positions in a row are multiples of."""
    ends = np.flatnonzero(np.diff(positions, axis=1, append=-1) != 1) + 1
    return int(np.gcd.reduce(np.diff(ends, prepend=0)))


def _kind(layer: nn.Module | Tensor) -> str:
    kernel = "x".join(str(size) for size in getattr(layer, "kernel_size", ()))
    return f"{type(layer).__name__} {kernel}".strip()


def _blocks(
    members: tuple[Member, ...], layers: Mapping[str, nn.Module | Tensor], width: int, whole_channel_groups: bool
) -> tuple[int, str]:
    """How many equal runs the units fall into, as grouped convolutions need; and why they cannot, else ""."""
    counts = {member: block_count(layers[member.module], member.axis, whole_channel_groups) for member in members}
    needed = {member: count for member, count in counts.items() if count > 1}
    blocks = max(needed.values(), default=1)
    for member, count in needed.items():
        whole = member.positions.shape == (member.size, 1) and bool((np.diff(member.positions[:, 0]) == 1).all())
        if not whole or width % blocks or blocks % count:
            return (
                1,
                f"{member.module} has {count} channel groups that this group's channels do not fill evenly",
            )
    return blocks, ""


def _assign_roles(groups: list[Group], coupling: Coupling) -> list[Group]:
    """Tell inside of blocks, residual streams, the representation and the outputs apart.

    We define: a group is a residual stream where its channels pass an addition of two tensors, or where it
    forks into a projection shortcut and the branch that the shortcut is added to.
    """
    output_layers = {
        name for group in groups if group.role == "output" and not group.consumers for name in group.producers
    }
    streams = {i for i, group in enumerate(groups) if coupling.added.intersection(group.units)}
    made_by = defaultdict(set)
    for index, group in enumerate(groups):
        for name in group.producers:
            made_by[name].add(index)
    with_roles = []
    for index, group in enumerate(groups):
        role: Role = group.role
        if role == "filters" and output_layers & set(group.consumers):
            role = "representation"
        elif role == "filters" and (index in streams or _feeds_shortcut(index, groups, made_by, streams)):
            role = "stream"
        with_roles.append(replace(group, role=role))
    return with_roles


def _feeds_shortcut(index: int, groups: list[Group], made_by: Mapping[str, set[int]], streams: set[int]) -> bool:
    """Whether one of the group's consumers is a shortcut: its output is added to what the other consumers lead to."""
    consumers = set(groups[index].consumers)
    for shortcut in consumers:
        joined = made_by[shortcut] & streams
        pending = [target for name in consumers - {shortcut} for target in made_by[name]] if joined else []
        passed = {index}
        while pending:
            target = pending.pop()
            if target in joined:
                return True
            if target not in passed:
                passed.add(target)
                others = set(groups[target].consumers) - {shortcut}
                pending.extend(after for name in others for after in made_by[name])
    return False
