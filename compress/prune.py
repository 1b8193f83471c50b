"""From a dense network to a pruned one, with the plan that says how."""

from __future__ import annotations

import copy
import fnmatch
import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import torch
from torch import nn

from pruneport.compress.allocation import allocate, choose_units, target_of, why_dense
from pruneport.compress.cost import Cost, CostModel, count_cost, count_macs_by_module
from pruneport.compress.criteria import score_groups
from pruneport.compress.groups import Group, find_groups
from pruneport.compress.masking import check_against_masked
from pruneport.compress.options import PruneOptions
from pruneport.compress.plan import GroupPlan, Plan, Request, apply_plan, group_plan
from pruneport.errors import TargetError
from pruneport.models.record import Source

__all__ = ["GroupView", "Pruned", "describe_groups", "prune"]

_LIBRARIES = (
    "pruneport",
    "torch",
    "torchvision",
    "timm",
    "torch-pruning",
    "fvcore",
    "onnx",
    "onnxruntime-gpu",
)


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """The pruned network, in eval mode, and its plan."""

    network: nn.Module
    plan: Plan


@dataclass(frozen=True, kw_only=True)
class GroupView:
    """A group as ``inspect`` shows it; ``obstacle`` says why it would be left dense."""

    group: Group
    cost: Cost
    obstacle: str


def prune(
    network: nn.Module,
    source: Source,
    options: PruneOptions,
    progress: Callable[[str], None] = lambda message: None,
) -> Pruned:
    """Remove filters until the network meets its target; ``network`` itself is left as it is.

    Args:
        network: The dense network in eval mode.
        source: Where it came from; gives the input shape and the seed.
        options: How much to remove, and how it is chosen.
        progress: Told what is being done.

    Raises:
        TargetError: The target is wrong or out of reach.
        ModelError: The network refuses the input shape.
        PruningError: Nothing can be pruned, or the pruned network would not compute what it should.
    """
    target, value = target_of(options)
    progress("counting multiply-accumulates")
    macs = count_macs_by_module(network, source.input_shape)
    progress("finding coupled groups")
    groups = find_groups(network, _example(source, 1))
    cost = CostModel(network, groups, macs)
    reasons = _dense_reasons(network, groups, options)
    progress(f"scoring {sum(group.width for group in groups)} units in {len(groups)} groups by {options.criterion}")
    scores = score_groups(network, groups, [not reason for reason in reasons], options.criterion, source.seed)
    progress(f"searching widths for {target} {value:g}")
    allocation = allocate(groups, scores, cost, options, reasons)
    group_plans = tuple(
        group_plan(
            group,
            None if kept == group.width else choose_units(group, score, kept),
            asked,
            reason,
            cost.hanging_on(index),
        )
        for index, (group, score, kept, asked, reason) in enumerate(
            zip(groups, scores, allocation.kept, allocation.asked, allocation.reasons, strict=True)
        )
    )
    progress("removing filters")
    pruned = copy.deepcopy(network)
    apply_plan(pruned, group_plans)
    masked_error = check_against_masked(network, pruned, group_plans, _example(source, 2))
    return Pruned(
        network=pruned,
        plan=Plan(
            source=source,
            request=_request(target, value, options),
            dense=cost.dense,
            pruned=count_cost(pruned, source.input_shape),
            groups=group_plans,
            libraries=_versions(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            note=allocation.note or _counted_note(cost, allocation.kept, pruned, group_plans),
            masked_error=masked_error,
        ),
    )


def describe_groups(network: nn.Module, source: Source, options: PruneOptions) -> tuple[Cost, list[GroupView]]:
    """Return the dense cost and every group with what hangs on it.

    Raises:
        ModelError: The network refuses the input shape.
        PruningError: Its dependencies cannot be traced.
    """
    macs = count_macs_by_module(network, source.input_shape)
    groups = find_groups(network, _example(source, 1))
    cost = CostModel(network, groups, macs)
    reasons = _dense_reasons(network, groups, options)
    views = [
        GroupView(group=group, cost=cost.hanging_on(index), obstacle=reason)
        for index, (group, reason) in enumerate(zip(groups, reasons, strict=True))
    ]
    return cost.dense, views


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


def _request(target: str, value: float, options: PruneOptions) -> Request:
    return Request(
        target=target,
        value=value,
        criterion=options.criterion,
        scope=options.scope,
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


def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
