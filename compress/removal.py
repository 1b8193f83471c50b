"""Removing units and proving it: the groups that a failed proof blames are left dense."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import nn

from pruneport.compress.assessment import Assessment
from pruneport.compress.graph.branches import Branch
from pruneport.compress.graph.dependency.channel_graph import ChannelGraph
from pruneport.compress.graph.module_attributes import ForwardChanges
from pruneport.compress.group_records import DroppedBranch
from pruneport.compress.surgery.dropping import drop_branches
from pruneport.compress.surgery.plan import GroupPlan
from pruneport.compress.surgery.zeroing_check import ForwardError, OutputError, check_against_masked
from pruneport.errors import ModelError, PruningError
from pruneport.models.inputs import ExampleInputs

__all__ = ["Removal", "dropped_branches", "leave_culprits_dense", "remove_units"]


@dataclass(frozen=True, kw_only=True)
class Removal:
    """A network without the units that a plan removes.

    Attributes:
        network: In eval mode.
        changes: What its forwards were told.
        masked_error: Largest difference from the masked dense network (see ``zeroing_check``).
        dropped: The branches that were dropped.
    """

    network: nn.Module
    changes: ForwardChanges
    masked_error: float | None
    dropped: tuple[DroppedBranch, ...] = ()


def remove_units(
    network: nn.Module, example: ExampleInputs, assessed: Assessment, plans: Sequence[GroupPlan]
) -> Removal:
    """Shrink a copy of the network and prove that it computes what zeroing the units does.

    A branch none of whose groups keeps a unit is dropped.

    Args:
        network: The dense network in eval mode.
        example: Inputs to prove it on.
        assessed: What is known of it.
        plans: What each group keeps.

    Raises:
        ForwardError: The pruned network does not run.
        OutputError: It computes something else.
    """
    chosen = [
        (group, [group.units[unit] for unit in sorted(set(range(group.width)).difference(plan.kept or ()))])
        for group, plan in zip(assessed.groups, plans, strict=True)
        if plan.narrower
    ]
    gone = dropped_branches(assessed, plans)
    dropped = tuple(_record(branch, assessed) for branch in gone)
    traced = [branch.traced for branch in gone]
    lost = {unit for _, units in chosen for unit in units}
    first: ForwardError | OutputError | None = None
    tried: list[ForwardChanges] = []
    for dense_numbers in (False, True):
        pruned = copy.deepcopy(network)
        graph = ChannelGraph.of(pruned, assessed.coupling)
        with graph.shrinking.fitted_once(dense_numbers):
            for group, units in chosen:
                graph.group_of(group, units).prune()
        drop_branches(pruned, dropped)
        if graph.shrinking.changes in tried:
            break
        tried.append(graph.shrinking.changes)
        try:
            error = check_against_masked(network, pruned, plans, example, assessed.coupling, lost, traced)
            return Removal(network=pruned, changes=graph.shrinking.changes, masked_error=error, dropped=dropped)
        except (ForwardError, OutputError) as failure:
            first = first or failure
    assert first is not None
    raise first


def dropped_branches(assessed: Assessment, plans: Sequence[GroupPlan]) -> list[Branch]:
    """The branches none of whose groups keeps a unit."""
    return [branch for branch in assessed.branches if all(plans[index].kept == () for index in branch.groups)]


def _record(branch: Branch, assessed: Assessment) -> DroppedBranch:
    """What the plan says of a dropped branch."""
    cost, damage = assessed.cost.branch_cost(branch), assessed.drop_damage.get(branch.name)
    measured = "" if damage is None else f"; damage {damage:.3g}, as measured for widths"
    return DroppedBranch(
        name=branch.name,
        addition=branch.traced.addition,
        modules=dict(branch.traced.modules),
        parameters=branch.traced.parameters,
        groups=tuple(assessed.groups[index].name for index in branch.groups),
        reason=f"the target is met with the least damage without it{measured}",
        macs=cost.macs,
        params=cost.params,
    )


def leave_culprits_dense(
    network: nn.Module,
    example: ExampleInputs,
    assessed: Assessment,
    plans: Sequence[GroupPlan],
    error: PruningError | ModelError,
    also: Callable[[nn.Module], object] = lambda pruned: None,
) -> Assessment:
    """Leave dense the groups that the proof blames: those without which it passes; branches are tried first.

    The groups are pruned one after the other, by bisection, until the first with which the proof fails; groups of the
    same structure are tried by themselves; then what is left is tried again.

    Args:
        network: The dense network in eval mode.
        example: Inputs to prove it on.
        assessed: What is known of it.
        plans: What each group keeps.
        error: What the proof said of all of them.
        also: Must not raise a ``ModelError`` on the pruned network, either.
    """
    if blamed_branches := _blamed_branches(network, example, assessed, plans, also):
        return replace(assessed, branches=tuple(one for one in assessed.branches if one not in blamed_branches))
    left = [index for index, plan in enumerate(plans) if plan.narrower]
    reasons = list(assessed.reasons)

    def failure(pruned: Sequence[int]) -> PruningError | ModelError | None:
        chosen = [
            plan if index in pruned or plan.kept == () else replace(plan, kept=None) for index, plan in enumerate(plans)
        ]
        try:
            also(remove_units(network, example, assessed, chosen).network)
        except (ForwardError, OutputError, ModelError) as found:
            return found
        return None

    found: PruningError | ModelError | None = error
    while found is not None and left:
        fails, passes = len(left), 0  # the first so many groups
        while fails - passes > 1:
            middle = (fails + passes) // 2
            now = failure(left[:middle])
            fails, passes = (fails, middle) if now is None else (middle, passes)
            found = now or found
        blamed = {left[fails - 1]: found}
        structure = assessed.groups[left[fails - 1]].structure
        for index in left:
            alike = assessed.groups[index].structure == structure and index not in blamed
            if alike and (now := failure([index])) is not None:
                blamed[index] = now
        for index, why in blamed.items():
            reasons[index] = _reason(why)
        left = [index for index in left if index not in blamed]
        found = failure(left) if left else None
    return replace(assessed, reasons=reasons)


def _blamed_branches(
    network: nn.Module,
    example: ExampleInputs,
    assessed: Assessment,
    plans: Sequence[GroupPlan],
    also: Callable[[nn.Module], object],
) -> list[Branch]:
    """The dropped branches with which the proof fails while all other groups are dense: each alone, or else all."""
    dropped = dropped_branches(assessed, plans)

    def fails(branches: Sequence[Branch]) -> bool:
        gone = {index for branch in branches for index in branch.groups}
        chosen = [replace(plan, kept=() if index in gone else None) for index, plan in enumerate(plans)]
        try:
            also(remove_units(network, example, assessed, chosen).network)
        except (ForwardError, OutputError, ModelError):
            return True
        return False

    if not dropped or not fails(dropped):
        return []
    return [branch for branch in dropped if fails([branch])] or dropped


def _reason(error: PruningError | ModelError) -> str:
    """Why a group is left dense after its removal failed."""
    if isinstance(error, ForwardError):
        return f"the forward of {error.stack[-1] or 'the network'} relies on this width: {error.cause}"
    if isinstance(error, OutputError):
        return f"removing some of it {error.change}"
    return f"a forward relies on this width while torch traces it: {str(error).splitlines()[0][:200]}"
