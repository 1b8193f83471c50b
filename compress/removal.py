"""Removing units and proving it: the groups that a failed proof blames are left dense."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import nn

from pruneport.compress.assessment import Assessment
from pruneport.compress.graph.dependency import ChannelGraph
from pruneport.compress.graph.module_attributes import ForwardChanges
from pruneport.compress.surgery.plan import GroupPlan
from pruneport.compress.surgery.zeroing_check import ForwardError, OutputError, check_against_masked
from pruneport.errors import ModelError, PruningError
from pruneport.models.inputs import ExampleInputs

__all__ = ["Removal", "leave_culprits_dense", "remove_units"]


@dataclass(frozen=True, kw_only=True)
class Removal:
    """A network without the units that a plan removes.

    Attributes:
        network: In eval mode.
        changes: What its forwards were told.
        masked_error: Largest difference from the masked dense network (see ``zeroing_check``).
    """

    network: nn.Module
    changes: ForwardChanges
    masked_error: float | None


def remove_units(
    network: nn.Module, example: ExampleInputs, assessed: Assessment, plans: Sequence[GroupPlan]
) -> Removal:
    """Shrink a copy of the network and prove that it computes what zeroing the units does.

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
        (group, [group.units[unit] for unit in sorted(set(range(group.width)).difference(plan.kept))])
        for group, plan in zip(assessed.groups, plans, strict=True)
        if plan.kept is not None
    ]
    lost = {unit for _, units in chosen for unit in units}
    first: ForwardError | OutputError | None = None
    tried: list[ForwardChanges] = []
    for dense_numbers in (False, True):
        pruned = copy.deepcopy(network)
        graph = ChannelGraph.of(pruned, assessed.coupling)
        with graph.fitted_once(dense_numbers):
            for group, units in chosen:
                graph.group_of(group, units).prune()
        if graph.changes in tried:
            break
        tried.append(graph.changes)
        try:
            error = check_against_masked(network, pruned, plans, example, assessed.coupling, lost)
            return Removal(network=pruned, changes=graph.changes, masked_error=error)
        except (ForwardError, OutputError) as failure:
            first = first or failure
    assert first is not None
    raise first


def leave_culprits_dense(
    network: nn.Module,
    example: ExampleInputs,
    assessed: Assessment,
    plans: Sequence[GroupPlan],
    error: PruningError | ModelError,
    also: Callable[[nn.Module], object] = lambda pruned: None,
) -> Assessment:
    """Leave dense the groups that the proof blames: those without which it passes.

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
    left = [index for index, plan in enumerate(plans) if plan.kept is not None]
    reasons = list(assessed.reasons)

    def failure(pruned: Sequence[int]) -> PruningError | ModelError | None:
        chosen = [plan if index in pruned else replace(plan, kept=None) for index, plan in enumerate(plans)]
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


def _reason(error: PruningError | ModelError) -> str:
    """Why a group is left dense after its removal failed."""
    if isinstance(error, ForwardError):
        return f"the forward of {error.stack[-1] or 'the network'} relies on this width: {error.cause}"
    if isinstance(error, OutputError):
        return f"removing some of it {error.change}"
    return f"a forward relies on this width while torch traces it: {str(error).splitlines()[0][:200]}"
