"""One plan of two that were carried out in a row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from pruneport.compress.group_records import Axis, GroupPlan, Member
from pruneport.compress.records import Earlier
from pruneport.compress.surgery.apply import Sizes, positions_kept
from pruneport.compress.surgery.plan import Plan
from pruneport.errors import BundleError

__all__ = ["compose", "compose_further"]


def compose_further(plan: Plan, further: Plan) -> Plan:
    """The plan of a compressed network that was compressed further: the same, and it tells what was done before."""
    step = Earlier(
        created=plan.created,
        request=plan.request,
        pruned=plan.pruned,
        note=plan.note,
        calibration=plan.calibration,
        recovery=plan.recovery,
        training=plan.training,
    )
    return replace(compose(plan, further), earlier=(*plan.earlier, step))


def compose(plan: Plan, further: Plan) -> Plan:
    """The plan that does both: ``further`` prunes what ``plan`` left, and knows no other layers.

    What was asked, and what recovery and training did, is that of ``further``.

    Args:
        plan: Of the dense network, or of none of its groups.
        further: Of the network that ``plan`` makes.

    Raises:
        BundleError: ``plan`` is of format 1 and the further pruning changes how forwards compute sizes.
    """
    if plan.sizes is None and further.sizes and any(group.kept is not None for group in plan.groups):
        raise BundleError(
            "this bundle is of an older pruneport, and its network cannot be pruned further. Compress it again from "
            "its source with this version."
        )
    attributes = {
        name: {**plan.attributes.get(name, {}), **further.attributes.get(name, {})}
        for name in (*plan.attributes, *further.attributes)
    }
    groups, names = _composed_groups(plan.groups, further.groups)
    dropped = (replace(one, groups=tuple(names.get(name, name) for name in one.groups)) for one in further.branches)
    errors = [error for error in (plan.masked_error, further.masked_error) if error is not None]
    return replace(
        further,
        source=plan.source,
        dense=plan.dense,
        groups=groups,
        attributes=attributes,
        sizes=None
        if plan.sizes is None and not further.sizes
        else _composed_sizes(plan.sizes or {}, further.sizes or {}),
        masked_error=max(errors, default=None),
        branches=(*plan.branches, *dropped),
        earlier=plan.earlier,
    )


def _composed_sizes(before: Sizes | None, after: Sizes | None) -> dict[str, dict[str, dict[int, int]]] | None:
    """The sizes of two plans in a row: where both give one, the later."""
    if before is None and not after:
        return None
    before, after = before or {}, after or {}
    return {
        module: {
            call: {**before.get(module, {}).get(call, {}), **after.get(module, {}).get(call, {})}
            for call in (*before.get(module, {}), *after.get(module, {}))
        }
        for module in (*before, *after)
    }


def _composed_groups(
    before: Sequence[GroupPlan], after: Sequence[GroupPlan]
) -> tuple[tuple[GroupPlan, ...], dict[str, str]]:
    """The groups of two plans in a row, in channels of the dense network; and new names of some of the later ones.

    Where both plans have the same group, it is one of its units. Else (attention was pruned by width and then by whole
    heads; an earlier version saw other groups) the later one stands beside those before: an axis loses what any group
    of it removes.
    """
    if not before:
        return tuple(after), {}
    by_name = {group.name: group for group in before}
    in_dense = _InDense(before)
    composed: dict[str, GroupPlan] = {}
    others: list[GroupPlan] = []
    for group in after:
        members = tuple(in_dense(member) for member in group.members)
        same = by_name.get(group.name)
        if same is not None and _is_left_of(same, group, members):
            composed[group.name] = _composed(same, group)
        elif group.kept is not None:
            others.append(replace(group, members=members))
    taken, names = set(by_name), dict[str, str]()
    for number, group in enumerate(others):
        name = group.name
        while name in taken:
            name += ", again"
        taken.add(name)
        names[group.name] = name
        others[number] = replace(group, name=name)
    left = (group for group in before if group.name not in composed)
    return (*composed.values(), *left, *others), names


class _InDense:
    """Turns members of a pruned network's groups into those of the dense one."""

    def __init__(self, before: Iterable[GroupPlan]) -> None:
        members = [(member, group.kept) for group in before if group.kept for member in group.members]
        self._kept = positions_kept(members)
        self._sizes = {(member.module, member.axis): member.size for member, _ in members}

    def __call__(self, member: Member) -> Member:
        key = (member.module, member.axis)
        if key not in self._sizes:
            return member
        kept = np.array(self._kept[member.module][member.axis], dtype=np.int64)
        return replace(member, size=self._sizes[key], positions=kept[member.positions])


def _is_left_of(before: GroupPlan, after: GroupPlan, members: Iterable[Member]) -> bool:
    """Whether a group's units are what is left of an earlier one's; ``members`` are its own in the dense network."""
    units = range(before.width) if before.kept is None else before.kept
    ours: Mapping[tuple[str, Axis], Member] = {(member.module, member.axis): member for member in before.members}
    theirs: Mapping[tuple[str, Axis], Member] = {(member.module, member.axis): member for member in members}
    return (
        len(units) == after.width
        and ours.keys() == theirs.keys()
        and all(np.array_equal(ours[key].positions[list(units)], theirs[key].positions) for key in ours)
    )


def _composed(before: GroupPlan, after: GroupPlan) -> GroupPlan:
    """A group after two plans in a row, in units of the dense network."""
    if after.kept is None:
        return before if before.kept is not None else replace(before, asked=after.asked, reason=after.reason)
    kept = after.kept if before.kept is None else tuple(before.kept[unit] for unit in after.kept)
    return replace(before, kept=kept, asked=after.asked, reason=after.reason)
