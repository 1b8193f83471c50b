"""From a dense network to a pruned one, with the plan that says how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from pruneport.arrays import FloatArray
from pruneport.compress.activations.calibration import Calibration
from pruneport.compress.allocation.cost import Cost, count_cost
from pruneport.compress.allocation.search import Allocation, allocate
from pruneport.compress.allocation.target import lowest_share, missed_target, target_of
from pruneport.compress.assessment import Assessment, assess
from pruneport.compress.graph.branches import Branch
from pruneport.compress.graph.widths import choose_units
from pruneport.compress.importance.criteria import name_of
from pruneport.compress.options import CompressOptions, PruneOptions
from pruneport.compress.removal import Removal, leave_culprits_dense, remove_units
from pruneport.compress.structure import example_inputs, reasons_with
from pruneport.compress.surgery.plan import GroupPlan, Plan, Request, group_plan
from pruneport.compress.surgery.zeroing_check import ForwardError, OutputError
from pruneport.errors import ModelError, TargetError
from pruneport.models.inputs import batch_of
from pruneport.models.outputs import takes_several
from pruneport.models.record import Source
from pruneport.progress import Progress, silent
from pruneport.versions import library_versions

__all__ = ["PLAN_LIBRARIES", "Pruned", "Pruner", "network_with", "prune", "request_of"]

PLAN_LIBRARIES = (
    "pruneport",
    "torch",
    "torchvision",
    "timm",
    "fvcore",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
)
"""What a plan depends on, as far as they are installed."""
_SEARCHES = 4  # allocations, where what is counted is not what was predicted
_CLOSE = 0.005  # of dense
_UNCOUNTED = ("ratio", "latency")  # fvcore says nothing of them


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """The pruned network, in eval mode, its plan, and the inputs that it was calibrated with, where there were any."""

    network: nn.Module
    plan: Plan
    calibration: Calibration | None = None


Pruner = Callable[[nn.Module, Source, CompressOptions, Progress, Assessment], Pruned]
"""Does what ``prune`` does: one that can time networks meets a latency target."""


@dataclass(frozen=True, kw_only=True)
class _Attempt:
    """One allocation, carried out: what it was made from, and what it came to."""

    assessed: Assessment
    allocation: Allocation
    plans: tuple[GroupPlan, ...]
    removal: Removal
    counted: Cost

    def shares(self, target: str) -> tuple[float, float]:
        """What is left of the dense compute or parameters: as predicted, as counted."""
        cost, kept = self.assessed.cost, np.array(self.allocation.kept, dtype=np.float64)
        return cost.share_of_dense(kept, target), self.counted.share_of(cost.original, target)


def prune(
    network: nn.Module,
    source: Source,
    options: PruneOptions,
    progress: Progress = silent,
    assessment: Assessment | None = None,
) -> Pruned:
    """Remove filters until the network meets its target; ``network`` itself is left as it is.

    Args:
        network: The dense network in eval mode.
        source: Where it came from; gives the input shape and the seed.
        options: How much to remove, and how it is chosen.
        progress: Told what is being done.
        assessment: From ``assess`` with the same options but for the target; needed where the criterion or the
            ranking needs inputs.

    Raises:
        ImageFolderError: The criterion or the ranking needs inputs, and there is no assessment.
        TargetError: The target is wrong or out of reach.
        ModelError: The network refuses the input shape.
        PruningError: Nothing can be pruned.
    """
    target, value = target_of(options)
    assessed = assessment or assess(network, source, options, progress=progress)
    options = replace(options, criterion=assessed.options.criterion, ranking=assessed.options.ranking)
    best = _nearest(network, source, assessed, options, progress)
    removal = best.removal
    return Pruned(
        network=removal.network,
        plan=Plan(
            source=source,
            request=request_of(target, value, options),
            dense=assessed.cost.original,
            pruned=best.counted,
            groups=best.plans,
            attributes=removal.changes.attributes,
            sizes=removal.changes.sizes,
            libraries=library_versions(*PLAN_LIBRARIES),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            note=_note(best, options),
            masked_error=removal.masked_error,
            branches=removal.dropped,
        ),
    )


def network_with(network: nn.Module, source: Source, assessed: Assessment, kept: FloatArray) -> nn.Module:
    """The network whose groups keep so many units each, (groups,).

    Raises:
        PruningError: It does not compute what zeroing the others does.
    """
    counts = tuple(int(count) for count in kept)
    reasons = tuple(assessed.reasons)
    allocation = Allocation(kept=counts, asked=tuple(map(float, counts)), reasons=reasons, note=None)
    example = example_inputs(source, 2 if takes_several(network, source.takes) else 1)
    return remove_units(network, example, assessed, _plans(assessed, allocation)).network


def _note(found: _Attempt, options: PruneOptions) -> str | None:
    """What a user should know of the target and of what was tried; None where there is nothing."""
    target, value = target_of(options)
    missed = found.allocation.note
    if target == "latency":  # whoever times it says more
        missed = None
    elif target != "ratio":
        missed = missed_target(found.shares(target)[1], value, options)
    idle = found.assessed.coupling.idle
    unseen = (
        "layers that did not run on the input that was tried keep their weights, and inputs that they run on may fail: "
        f"{', '.join(idle[:10])}{f' and {len(idle) - 10} more' if len(idle) > 10 else ''}."
        if idle
        else None
    )
    return " ".join(sentence for sentence in (missed, unseen) if sentence) or None


def _nearest(
    network: nn.Module, source: Source, assessed: Assessment, options: PruneOptions, progress: Progress
) -> _Attempt:
    """The pruned network whose counted cost is nearest to the target.

    Where the count is not what was predicted, widths are searched again for a target moved by the difference.
    """
    target, value = target_of(options)
    found: list[_Attempt] = []
    aim = value
    while True:
        try:
            moved: dict[str, Any] = {target: aim}
            attempt = _attempt(network, source, assessed, replace(options, **moved), progress)
        except TargetError:
            if not found:
                raise
            break
        found.append(attempt)
        assessed = attempt.assessed
        if target in _UNCOUNTED:
            return attempt
        predicted, counted = attempt.shares(target)
        aim += value - counted
        if abs(predicted - counted) <= _CLOSE or len(found) == _SEARCHES or not 0 < aim < 1:
            break
        progress(f"counted {counted:.3f} of dense where {predicted:.3f} was predicted: searching again")
    return min(found, key=lambda attempt: abs(attempt.shares(target)[1] - value))


def _attempt(
    network: nn.Module, source: Source, assessed: Assessment, options: PruneOptions, progress: Progress
) -> _Attempt:
    """Search widths and remove what they leave out; groups that the proof blames are left dense."""
    target, value = target_of(options)
    example = example_inputs(source, 2)
    while True:
        progress(f"searching widths for {target} {value:.4g}")
        allocation = allocate(
            assessed.groups,
            assessed.scores,
            assessed.cost,
            options,
            assessed.reasons,
            assessed.curves,
            partial(_wider, network, assessed, options),
            _to_drop(assessed, options),
        )
        plans = _plans(assessed, allocation)
        progress("removing filters")
        try:
            removal = remove_units(network, example, assessed, plans)
            counted = count_cost(removal.network, source.takes)
            return _Attempt(assessed=assessed, allocation=allocation, plans=plans, removal=removal, counted=counted)
        except (ForwardError, OutputError, ModelError) as error:
            if batch_of(example) > 1 and not takes_several(network, source.takes):
                example = example_inputs(source, 1)
                continue
            progress("finding the groups that cannot be pruned")
            also = partial(count_cost, shape=source.takes) if isinstance(error, ModelError) else lambda _: None
            assessed = leave_culprits_dense(network, example, assessed, plans, error, also)


def _to_drop(assessed: Assessment, options: PruneOptions) -> dict[Branch, float]:
    """The branches that may be dropped, and what that costs; none where it was not measured."""
    if options.ranking != "sensitivity" or options.depth == "never":
        return {}
    return {branch: assessed.drop_damage[branch.name] for branch in assessed.branches}


def _wider(network: nn.Module, assessed: Assessment, options: PruneOptions) -> dict[str, float]:
    """Options that allow more, and the lowest share of dense that each would reach; none for a ratio."""
    name, _ = target_of(options)
    if name == "ratio":
        return {}
    choices = {
        "`scope=channels`": replace(options, scope="channels"),
        "`prune_representation`": replace(options, prune_representation=True),
    }
    return {
        option: lowest_share(assessed.groups, assessed.cost, allowed, reasons_with(network, assessed, allowed))
        for option, allowed in choices.items()
        if allowed != options
    }


def _plans(assessed: Assessment, allocation: Allocation) -> tuple[GroupPlan, ...]:
    """What the allocation decided for every group, with the units that stay."""
    return tuple(
        group_plan(
            group,
            () if kept == 0 else None if kept == group.width else choose_units(group, score, kept),
            asked,
            reason,
            assessed.cost.group_cost(index),
        )
        for index, (group, score, kept, asked, reason) in enumerate(
            zip(assessed.groups, assessed.scores, allocation.kept, allocation.asked, allocation.reasons, strict=True)
        )
    )


def request_of(target: str, value: float, options: PruneOptions) -> Request:
    """What the plan says of a request."""
    return Request(
        target=target,
        value=value,
        criterion=name_of(options.criterion),
        scope=options.scope,
        attention=options.attention,
        ranking=options.ranking,
        round_to=options.round_to,
        max_pruning_ratio=options.max_pruning_ratio,
        keep=options.keep,
        prune_representation=options.prune_representation,
        depth=options.depth,
    )
