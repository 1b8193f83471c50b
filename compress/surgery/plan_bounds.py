"""The groups of plan.json, once its numbers are known to make no more of memory than the weights beside it allow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from pruneport.compress.group_records import DroppedBranch, GroupPlan, Member, role_of
from pruneport.compress.surgery.plan_schema import GroupEntry, MemberEntry, PlanDocument
from pruneport.errors import BundleError

__all__ = ["Shapes", "check_sizes", "dense_elements", "read_groups"]

Shapes = Mapping[str, Sequence[int]]
"""Shapes of the pruned network's weights, by name."""


_FREE, _MOST_POSITIONS = 2**20, 2**24  # positions that any plan may name, and that none may exceed
_MOST_SIZE, _UPSAMPLED = 2**31 - 1, 64  # of one dimension; places of an output or a batch for one of the input
_EDITED = "the plan was damaged or edited. Compress again."


def read_groups(
    entries: Sequence[GroupEntry], shapes: Shapes | None, dropped: Sequence[DroppedBranch] = ()
) -> tuple[GroupPlan, ...]:
    """Make the groups of a plan, once it is known that they take no more memory than the weights allow.

    Args:
        entries: As they stand in the file.
        shapes: Of the pruned network's weights.
        dropped: The branches that were dropped, whose groups keep no units.

    Raises:
        BundleError: Kept indices or positions are out of range, or they are more than the weights can be of.
    """
    named = sum(_positions_named(group, member) for group in entries for member in group.members)
    most = min(_MOST_POSITIONS, _FREE + _elements(shapes)) if shapes is not None else _MOST_POSITIONS
    if named > most:
        largest = max(entries, key=lambda group: sum(_positions_named(group, member) for member in group.members))
        raise BundleError(
            f"plan.json: its groups name {named} positions, most of them {largest.name[:80]}; expected at most {most} "
            f"beside these weights; {_EDITED}"
        )
    gone = {name for branch in dropped for name in branch.groups}
    return tuple(_group(entry, dropped=entry.name in gone) for entry in entries)


def check_sizes(document: PlanDocument, shapes: Shapes | None) -> None:
    """Refuse sizes of forwards and widths of output layers that cannot be this network's.

    Raises:
        BundleError: Names the first of them.
    """
    widths = [member.size for group in document.groups for member in group.members]
    widths += [size for shape in (shapes or {}).values() for size in shape]
    source = document.source
    places = source.takes.entries if source.inputs is not None else math.prod(source.image_shape[1:])
    most = min(_MOST_SIZE, max(widths, default=1) * places * _UPSAMPLED)
    for module, calls in (document.sizes or {}).items():
        for call, slots in calls.items():
            if (largest := max(slots.values(), default=0)) > most:
                raise BundleError(
                    f"plan.json: a size in {module[:80]}, {call[:80]}, is {largest}; expected at most {most} in a "
                    f"network of these widths and this input; {_EDITED}"
                )
    for name, outputs in document.source.output_layers.items():
        weight = (shapes or {}).get(f"{name}.weight")
        if outputs > max(widths, default=outputs) or (weight is not None and list(weight[:1]) != [outputs]):
            found = "no such weight" if weight is None else f"shape {list(weight)}"
            raise BundleError(
                f"plan.json: the output layer {name[:80]} has {outputs} outputs; the weights have {found}; {_EDITED}"
            )


def dense_elements(groups: Sequence[GroupPlan], shapes: Shapes) -> int:
    """About how many numbers the dense network's weights have, at least as many as they do.

    Args:
        groups: Of the plan; where their positions overlap, more is counted.
        shapes: Of the pruned network's weights.
    """
    left: dict[tuple[str, str], int] = {}
    dense: dict[tuple[str, str], int] = {}
    for group in groups:
        for member in group.members:
            key = (member.module, member.axis)
            dense[key] = member.size
            gone = member.positions.size // group.width * (group.width - group.kept_width)
            left[key] = left.get(key, member.size) - gone
    growth: dict[str, float] = {}
    for (module, axis), size in dense.items():
        growth[module] = growth.get(module, 1) * size / max(1, left[module, axis])
    total = 0.0
    for name, shape in shapes.items():
        parts = name.split(".")
        prefixes = (".".join(parts[:end]) for end in range(len(parts) + 1))
        total += math.prod(shape) * math.prod(growth.get(prefix, 1) for prefix in prefixes)
    return int(min(total, 2**62))


def _elements(shapes: Shapes) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def _positions_named(group: GroupEntry, member: MemberEntry) -> int:
    if member.positions is not None:
        return sum(map(len, member.positions))
    return group.width * (member.run or 0)


def _group(entry: GroupEntry, *, dropped: bool) -> GroupPlan:
    """Make a group of its entry; its kept units must be ascending, and there are some unless its branch is dropped."""
    kept = entry.kept
    if dropped and kept != []:
        raise BundleError(f"plan.json: group {entry.name} of a dropped branch keeps units; {_EDITED}")
    unsound = kept is not None and (not kept or kept != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= entry.width)
    if unsound and not dropped:
        raise BundleError(
            f"plan.json: the kept indices of group {entry.name} are not ascending numbers from 0 to "
            f"{entry.width - 1}; {_EDITED}"
        )
    return GroupPlan(
        name=entry.name,
        role=role_of(entry.scope),
        width=entry.width,
        asked=entry.asked,
        kept=None if kept is None else tuple(kept),
        reason=entry.reason,
        macs=entry.macs,
        params=entry.params,
        members=tuple(_member(member, entry.width, entry.name) for member in entry.members),
        whole_attention_heads=entry.heads,
    )


def _member(entry: MemberEntry, width: int, group: str) -> Member:
    """Make a member of its entry; its positions must lie on the axis, each once."""
    if entry.positions is not None:
        listed, run = entry.positions, len(entry.positions[0]) if entry.positions else 0
        fits = len(listed) == width and run > 0 and all(len(unit) == run for unit in listed)
        fits = fits and min(map(min, listed)) >= 0 and max(map(max, listed)) < entry.size
    else:
        start, run = entry.start or 0, entry.run or 1
        fits = start + width * run <= entry.size
    if not fits:
        raise BundleError(
            f"plan.json: group {group} names positions outside the {entry.size} of {entry.module}; {_EDITED}"
        )
    if entry.positions is None:
        positions = start + np.arange(width * run, dtype=np.int64).reshape(width, run)
    else:
        positions = np.array(listed, dtype=np.int64)
        if len(np.unique(positions)) != positions.size:
            raise BundleError(f"plan.json: group {group} names a position of {entry.module} twice; {_EDITED}")
    return Member(module=entry.module, axis=entry.axis, size=entry.size, positions=positions)
