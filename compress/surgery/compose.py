"""One plan of two that were carried out in a row."""

from __future__ import annotations

from dataclasses import replace

from pruneport.compress.records import GroupPlan
from pruneport.compress.surgery.apply import Sizes
from pruneport.compress.surgery.plan import Plan
from pruneport.errors import BundleError

__all__ = ["compose"]


def compose(plan: Plan, further: Plan) -> Plan:
    """The plan that does both: ``further`` prunes what ``plan`` left, and knows no other layers.

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
    before = {group.name: group for group in plan.groups}
    after = {group.name for group in further.groups}
    groups = (
        *(_composed(before[group.name], group) if group.name in before else group for group in further.groups),
        *(group for group in plan.groups if group.name not in after),
    )
    attributes = {
        name: {**plan.attributes.get(name, {}), **further.attributes.get(name, {})}
        for name in (*plan.attributes, *further.attributes)
    }
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
        recovery=plan.recovery,
        note=None,
        masked_error=max(errors, default=None),
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


def _composed(before: GroupPlan, after: GroupPlan) -> GroupPlan:
    """A group after two plans in a row, in units of the dense network."""
    if after.kept is None:
        return before
    kept = after.kept if before.kept is None else tuple(before.kept[unit] for unit in after.kept)
    return replace(before, kept=kept, asked=after.asked, reason=after.reason)
