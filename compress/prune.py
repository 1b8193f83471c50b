"""From a dense network to a pruned one, with the plan that says how."""

from __future__ import annotations

import copy
import fnmatch
import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np
import torch
from torch import nn

from pruneport.compress.allocation import Allocation, allocate, target_of, why_dense
from pruneport.compress.calibration import Calibration
from pruneport.compress.cost import Cost, CostModel, count_cost, count_macs_by_module
from pruneport.compress.coupling import Coupling, find_coupling
from pruneport.compress.criteria import score_groups, settle, wants_inputs
from pruneport.compress.forwards import ForwardChanges, fit_forwards, rescale_keys
from pruneport.compress.groups import Group, group_units
from pruneport.compress.masking import ForwardError, OutputError, check_against_masked
from pruneport.compress.options import PruneOptions
from pruneport.compress.plan import GroupPlan, Plan, Request, apply_plan, group_plan
from pruneport.compress.sensitivity import Curve, measure_sensitivity
from pruneport.compress.widths import Scores, choose_units, possible_widths
from pruneport.errors import ImageFolderError, TargetError
from pruneport.models.outputs import takes_several
from pruneport.models.record import Source

__all__ = ["Assessment", "GroupView", "Pruned", "assess", "describe_groups", "library_versions", "prune", "request_of"]

_LIBRARIES = (
    "pruneport",
    "torch",
    "torchvision",
    "timm",
    "fvcore",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
)


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """The pruned network, in eval mode, and its plan."""

    network: nn.Module
    plan: Plan


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """All that is known of the groups before a target is set, one entry a group.

    Attributes:
        options: With the criterion and the ranking that were used.
        coupling: How the network's channels hang together.
        groups: The coupled groups.
        cost: What any choice of widths costs.
        reasons: Why the group is left dense whatever the target, or an empty string.
        scores: (units,) each; the highest are kept.
        curves: The measured sensitivity; None where the ranking does without, or the group stays dense.
    """

    options: PruneOptions
    coupling: Coupling
    groups: list[Group]
    cost: CostModel
    reasons: list[str]
    scores: list[Scores]
    curves: list[Curve | None]


@dataclass(frozen=True, kw_only=True)
class GroupView:
    """A group as ``inspect`` shows it; ``obstacle`` says why it would be left dense, ``curve`` what removal costs."""

    group: Group
    cost: Cost
    obstacle: str
    curve: Curve | None = None


def prune(
    network: nn.Module,
    source: Source,
    options: PruneOptions,
    progress: Callable[[str], None] = lambda message: None,
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
        PruningError: Nothing can be pruned, or the pruned network would not compute what it should.
    """
    target, value = target_of(options)
    assessed = assessment or assess(network, source, options, progress=progress)
    options = replace(options, criterion=assessed.options.criterion, ranking=assessed.options.ranking)
    cost = assessed.cost
    example = _example(source, 2)
    while True:
        progress(f"searching widths for {target} {value:g}")
        allocation = allocate(assessed.groups, assessed.scores, cost, options, assessed.reasons, assessed.curves)
        group_plans = _plans(assessed, allocation)
        progress("removing filters")
        try:
            pruned, changes, masked_error = _remove(network, example, assessed, group_plans)
            break
        except (ForwardError, OutputError) as error:
            if len(example) > 1 and not takes_several(network, source.input_shape):
                example = example[:1]
                continue
            progress("finding the groups that cannot be pruned")
            assessed = _without_culprits(network, example, assessed, group_plans, error)
    return Pruned(
        network=pruned,
        plan=Plan(
            source=source,
            request=request_of(target, value, options),
            dense=cost.dense,
            pruned=count_cost(pruned, source.input_shape),
            groups=group_plans,
            attributes=changes.attributes,
            sizes=changes.sizes,
            libraries=library_versions(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            note=allocation.note or _counted_note(cost, allocation.kept, pruned, group_plans),
            masked_error=masked_error,
        ),
    )


def _plans(assessed: Assessment, allocation: Allocation) -> tuple[GroupPlan, ...]:
    return tuple(
        group_plan(
            group,
            None if kept == group.width else choose_units(group, score, kept),
            asked,
            reason,
            assessed.cost.hanging_on(index),
        )
        for index, (group, score, kept, asked, reason) in enumerate(
            zip(assessed.groups, assessed.scores, allocation.kept, allocation.asked, allocation.reasons, strict=True)
        )
    )


def _remove(
    network: nn.Module, example: torch.Tensor, assessed: Assessment, plans: Sequence[GroupPlan]
) -> tuple[nn.Module, ForwardChanges, float | None]:
    """Shrink a copy of the network and prove it; returns it, what its forwards are told, and the proof's error."""
    lost = {
        group.units[unit]
        for group, plan in zip(assessed.groups, plans, strict=True)
        if plan.kept is not None
        for unit in set(range(group.width)).difference(plan.kept)
    }
    pruned = copy.deepcopy(network)
    changes = fit_forwards(network, assessed.coupling, lambda unit: unit not in lost)
    apply_plan(pruned, plans, changes.attributes, changes.sizes)
    rescale_keys(pruned, assessed.coupling, lambda unit: unit not in lost)
    error = check_against_masked(network, pruned, plans, example, assessed.coupling, lost)
    return pruned, changes, error


def _without_culprits(
    network: nn.Module,
    example: torch.Tensor,
    assessed: Assessment,
    plans: Sequence[GroupPlan],
    error: ForwardError | OutputError,
) -> Assessment:
    """Leave dense the groups that the proof blames: those without which it passes.

    The groups are pruned one after the other, by bisection, until the first with which the proof fails; groups of the
    same structure are tried by themselves; then what is left is tried again.
    """
    left = [index for index, plan in enumerate(plans) if plan.kept is not None]
    reasons = list(assessed.reasons)

    def failure(pruned: Sequence[int]) -> ForwardError | OutputError | None:
        chosen = [plan if index in pruned else replace(plan, kept=None) for index, plan in enumerate(plans)]
        try:
            _remove(network, example, assessed, chosen)
        except (ForwardError, OutputError) as found:
            return found
        return None

    found: ForwardError | OutputError | None = error
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


def _reason(error: ForwardError | OutputError) -> str:
    if isinstance(error, ForwardError):
        return f"the forward of {error.stack[-1] or 'the network'} relies on this width: {error.cause}"
    return f"removing some of it {error.change}"


def assess(
    network: nn.Module,
    source: Source,
    options: PruneOptions,
    calibration: Calibration | None = None,
    labels: str = "auto",
    progress: Callable[[str], None] = lambda message: None,
) -> Assessment:
    """Find the groups, score their units, and measure the groups' sensitivity where the ranking needs it.

    Args:
        network: The dense network in eval mode; it is only read and run.
        source: Where it came from; gives the input shape and the seed.
        options: Criterion, ranking, scope and the widths allowed; the target plays no part.
        calibration: Inputs, where the criterion or the ranking needs them (see ``wants_inputs``).
        labels: For criteria with a loss: ``folder``, ``predicted`` or ``auto``.
        progress: Told what is being done.

    Raises:
        ImageFolderError: Inputs are needed and none are given, or their labels do not fit the network.
        ModelError: The network refuses the input shape.
        PruningError: Its dependencies cannot be traced, or it cannot be scored.
        TargetError: A pattern in ``keep`` matches nothing.
    """
    if wants_inputs(options, calibration is not None) and calibration is None:
        raise ImageFolderError(
            f"criterion {options.criterion} with ranking {options.ranking} needs inputs: give a calibration."
        )
    options = settle(options, calibration is not None)
    coupling, groups, cost, reasons = _find(network, source, options, progress)
    free = [not reason for reason in reasons]
    measured = options.ranking == "sensitivity"
    scores: list[Scores] | None = None
    curves: list[Curve | None] = [None] * len(groups)
    if not (measured and options.criterion == "block-hessian"):  # else one visit gives both
        units = sum(group.width for group in groups)
        progress(f"scoring {units} units in {len(groups)} groups by {options.criterion}")
        scores = score_groups(
            network, groups, free, options.criterion, source.seed, source.input_shape, calibration, labels, progress
        )
    if measured:
        assert calibration is not None
        widths = [possible_widths(group, options) if ok else None for group, ok in zip(groups, free, strict=True)]
        scores, curves = measure_sensitivity(network, groups, widths, calibration.batches, scores, progress)
    assert scores is not None
    return Assessment(
        options=options, coupling=coupling, groups=groups, cost=cost, reasons=reasons, scores=scores, curves=curves
    )


def describe_groups(
    network: nn.Module,
    source: Source,
    options: PruneOptions,
    calibration: Calibration | None = None,
    progress: Callable[[str], None] = lambda message: None,
) -> tuple[Cost, list[GroupView]]:
    """Return the dense cost and every group with what hangs on it.

    Args:
        network: The dense network in eval mode.
        source: Where it came from; gives the input shape.
        options: Scope, widths and what to keep; with the ranking ``sensitivity``, the curves are measured.
        calibration: Inputs to measure with.
        progress: Told what is being done.

    Raises:
        ModelError: The network refuses the input shape.
        PruningError: Its dependencies cannot be traced.
    """
    if options.ranking == "sensitivity":
        assessed = assess(network, source, options, calibration, progress=progress)
        groups, cost, reasons, curves = assessed.groups, assessed.cost, assessed.reasons, assessed.curves
    else:
        _, groups, cost, reasons = _find(network, source, options, progress)
        curves = [None] * len(groups)
    views = [
        GroupView(group=group, cost=cost.hanging_on(index), obstacle=reasons[index], curve=curves[index])
        for index, group in enumerate(groups)
    ]
    return cost.dense, views


def _find(
    network: nn.Module, source: Source, options: PruneOptions, progress: Callable[[str], None]
) -> tuple[Coupling, list[Group], CostModel, list[str]]:
    progress("counting multiply-accumulates")
    macs = count_macs_by_module(network, source.input_shape)
    progress("finding coupled groups")
    coupling = find_coupling(network, _example(source, 1), options.attention == "heads")
    groups = group_units(network, coupling)
    return (
        coupling,
        groups,
        CostModel(network, groups, macs, coupling),
        _dense_reasons(network, groups, options),
    )


def _example(source: Source, batch: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(source.seed)
    return torch.randn(batch, *source.input_shape, generator=generator)


def _dense_reasons(network: nn.Module, groups: Sequence[Group], options: PruneOptions) -> list[str]:
    names = [name for name, _ in network.named_modules() if name]
    unmatched = [pattern for pattern in options.keep if not fnmatch.filter(names, pattern)]
    if unmatched:
        shown = ", ".join(names[:6])
        raise TargetError(
            f"--keep {', '.join(unmatched)} matches no module; names look like {shown}, … (shell patterns, "
            "such as 'layer4.*'). `pruneport inspect` lists them."
        )
    return [why_dense(group, options, _kept_by(group, options.keep)) for group in groups]


def _kept_by(group: Group, patterns: Sequence[str]) -> str | None:
    for pattern in patterns:
        if any(fnmatch.fnmatchcase(member.module, pattern) for member in group.members):
            return pattern
    return None


def request_of(target: str, value: float, options: PruneOptions) -> Request:
    """What the plan says of a request."""
    return Request(
        target=target,
        value=value,
        criterion=options.criterion,
        scope=options.scope,
        attention=options.attention,
        ranking=options.ranking,
        round_to=options.round_to,
        max_pruning_ratio=options.max_pruning_ratio,
        keep=options.keep,
    )


def _counted_note(cost: CostModel, kept: Sequence[int], pruned: nn.Module, groups: Sequence[GroupPlan]) -> str | None:
    predicted = cost.params(np.array(kept, dtype=np.float64))
    counted = sum(parameter.numel() for parameter in pruned.parameters())
    if round(predicted) == counted:
        return None
    return f"predicted {predicted:.0f} parameters, counted {counted}: some parameters are shared between layers."


def library_versions() -> dict[str, str]:
    """Versions of the libraries that a plan depends on, as far as they are installed."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
