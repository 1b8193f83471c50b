"""What is known of a network before a target is set: its groups, what they cost, their scores and sensitivities."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from pruneport.compress.activations.calibration import Calibration
from pruneport.compress.allocation.cost import Cost, count_macs_by_module
from pruneport.compress.allocation.cost_model import CostModel
from pruneport.compress.allocation.target import why_dense
from pruneport.compress.devices import CPU, loaded_on, network_on
from pruneport.compress.graph.branches import Branch, droppable_branches
from pruneport.compress.graph.coupling import Coupling
from pruneport.compress.graph.dependency import ChannelGraph, dependency_graph
from pruneport.compress.graph.groups import Group
from pruneport.compress.graph.widths import Scores, possible_widths
from pruneport.compress.importance.criteria import name_of, resolve_auto, runs_on_inputs, score_groups, wants_inputs
from pruneport.compress.importance.drops import measure_drops
from pruneport.compress.importance.sensitivity import Curve, measure_sensitivity
from pruneport.compress.options import PruneOptions
from pruneport.errors import ImageFolderError, ModelError, TargetError
from pruneport.models.inputs import ExampleInputs
from pruneport.models.record import Source
from pruneport.progress import Progress, silent

__all__ = ["Assessment", "GroupView", "assess", "describe_groups", "example_inputs", "reasons_with"]


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """All that is known of the groups before a target is set, one entry a group.

    Attributes:
        options: With the criterion and the ranking that were used.
        graph: The dependency graph.
        cost: What any choice of widths costs.
        reasons: Why the group is left dense whatever the target, or an empty string.
        scores: (units,) each; the highest are kept.
        curves: The measured sensitivity; None where the ranking does without, or the group stays dense.
        branches: The residual branches that may be dropped.
        drop_damage: What that costs, as ``Curve.damage`` says it, by the branch's name; empty where the ranking does
            without.
    """

    options: PruneOptions
    graph: ChannelGraph
    cost: CostModel
    reasons: list[str]
    scores: list[Scores]
    curves: list[Curve | None]
    branches: tuple[Branch, ...] = ()
    drop_damage: Mapping[str, float] = field(default_factory=dict)

    @property
    def coupling(self) -> Coupling:
        """How the network's channels hang together."""
        return self.graph.coupling

    @property
    def groups(self) -> list[Group]:
        """The coupled groups."""
        return self.graph.groups


@dataclass(frozen=True, kw_only=True)
class GroupView:
    """A group as ``inspect`` shows it.

    Attributes:
        reason: Why it would be left dense.
        curve: What removal costs.
        branch: The residual branch that it lives in alone and that may be dropped, or an empty string.
    """

    group: Group
    cost: Cost
    reason: str
    curve: Curve | None = None
    branch: str = ""


def assess(
    network: nn.Module,
    source: Source,
    options: PruneOptions,
    calibration: Calibration | None = None,
    labels: str = "auto",
    progress: Progress = silent,
    original: Cost | None = None,
    device: torch.device = CPU,
) -> Assessment:
    """Find the groups, score their units, and measure the groups' sensitivity where the ranking needs it.

    Args:
        network: The dense network in eval mode; it is only read and run.
        source: Where it came from; gives the input shape and the seed.
        options: Criterion, ranking, scope and the widths allowed; the target plays no part.
        calibration: Inputs, where the criterion or the ranking needs them (see ``wants_inputs``).
        labels: For criteria with a loss: ``folder``, ``predicted`` or ``auto``.
        progress: Told what is being done.
        original: What the network that this one was pruned from costs, of which targets are then shares.
        device: Where scores are computed that need inputs, and sensitivities; the network stays where it is.

    Raises:
        ImageFolderError: Inputs are needed and none are given, or their labels do not fit the network.
        ModelError: The network refuses the input shape.
        PruningError: Its dependencies cannot be traced, or it cannot be scored.
        TargetError: A pattern in ``keep`` matches nothing.
    """
    options = resolve_auto(options, calibration is not None)
    if wants_inputs(options, calibration is not None) and calibration is None:
        raise ImageFolderError(
            f"criterion {name_of(options.criterion)} with ranking {options.ranking} needs inputs: give a calibration."
        )
    graph, cost, reasons, branches = _find(network, source, options, progress, original)
    groups = graph.groups
    free = [not reason for reason in reasons]
    measured = options.ranking == "sensitivity"
    placed = None if calibration is None else replace(calibration, batches=loaded_on(device, calibration.batches))
    scores: list[Scores] | None = None
    curves: list[Curve | None] = [None] * len(groups)
    drop_damage: Mapping[str, float] = {}
    if not (measured and options.criterion == "block-hessian"):  # else one visit gives both
        units = sum(group.width for group in groups)
        progress(f"scoring {units} units in {len(groups)} groups by {name_of(options.criterion)}")
        scores = score_groups(
            network_on(device, network) if runs_on_inputs(options.criterion) else network,
            groups,
            free,
            options.criterion,
            source.seed,
            source.takes,
            placed if runs_on_inputs(options.criterion) else calibration,
            labels,
            progress,
            graph,
        )
    if measured:
        assert placed is not None
        widths = [possible_widths(group, options) if ok else None for group, ok in zip(groups, free, strict=True)]
        moved, order = network_on(device, network), graph.coupling.order
        scores, curves = measure_sensitivity(moved, groups, widths, placed.batches, scores, progress)
        drop_damage = measure_drops(moved, groups, branches, order, placed.batches, progress)
    assert scores is not None
    return Assessment(
        options=options,
        graph=graph,
        cost=cost,
        reasons=reasons,
        scores=scores,
        curves=curves,
        branches=branches,
        drop_damage=drop_damage,
    )


def describe_groups(
    network: nn.Module,
    source: Source,
    options: PruneOptions,
    calibration: Calibration | None = None,
    progress: Progress = silent,
    device: torch.device = CPU,
) -> tuple[Cost, list[GroupView]]:
    """Return the dense cost and every group with what would go with it.

    Args:
        network: The dense network in eval mode.
        source: Where it came from; gives the input shape.
        options: Scope, widths and what to keep; with the ranking ``sensitivity``, the curves are measured.
        calibration: Inputs to measure with.
        progress: Told what is being done.
        device: Where they are measured.

    Raises:
        ModelError: The network refuses the input shape, or parts of it are compiled.
        PruningError: Its dependencies cannot be traced.
    """
    if options.ranking == "sensitivity":
        assessed = assess(network, source, options, calibration, progress=progress, device=device)
        graph, cost, reasons, curves = assessed.graph, assessed.cost, assessed.reasons, assessed.curves
    else:
        graph, cost, reasons, _ = _find(network, source, options, progress)
        curves = [None] * len(graph.groups)
    branches = droppable_branches(network, graph.groups, graph.coupling.branches, options.keep)
    branch_of = {index: branch.name for branch in branches for index in branch.groups}
    views = [
        GroupView(
            group=group,
            cost=cost.group_cost(index),
            reason=reasons[index],
            curve=curves[index],
            branch=branch_of.get(index, ""),
        )
        for index, group in enumerate(graph.groups)
    ]
    return cost.dense, views


def _find(
    network: nn.Module, source: Source, options: PruneOptions, progress: Progress, original: Cost | None = None
) -> tuple[ChannelGraph, CostModel, list[str], tuple[Branch, ...]]:
    """What needs no scores: the graph, what its groups cost, why some are left dense, and what may be dropped."""
    _refuse_compiled(network)
    progress("counting multiply-accumulates")
    macs = count_macs_by_module(network, source.takes)
    progress("finding coupled groups")
    graph = dependency_graph(network, example_inputs(source, 1), attention=options.attention)
    reasons = _dense_reasons(network, graph.groups, options)
    traced = graph.coupling.branches if options.depth == "auto" else ()
    branches = droppable_branches(network, graph.groups, traced, options.keep)
    cost = CostModel(network, graph.groups, macs, graph.coupling, original, branches)
    return graph, cost, reasons, branches


def _refuse_compiled(network: nn.Module) -> None:
    """What torch.compile and torch.jit have made cannot be shrunk, and shows no tracer what it does."""
    found = [name for name, module in network.named_modules() if _is_compiled(module)]
    parts = [name for name in found if not any(name.startswith(f"{other}.") for other in found)]
    if "" in found:
        parts = ["the network itself"]
    if parts:
        raise ModelError(
            f"compiled modules cannot be pruned: {', '.join(parts[:10])}. Give the network as it is before "
            "torch.compile, torch.jit.script and torch.jit.trace, and compile the pruned one."
        )


def _is_compiled(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule) or "_orig_mod" in module._modules  # torch.compile's


def reasons_with(network: nn.Module, assessed: Assessment, options: PruneOptions) -> list[str]:
    """Why each group would be left dense with other options; what was found by trying still holds."""
    before = _dense_reasons(network, assessed.groups, assessed.options)
    now = _dense_reasons(network, assessed.groups, options)
    return [
        tried if tried != first else reason for first, tried, reason in zip(before, assessed.reasons, now, strict=True)
    ]


def example_inputs(source: Source, batch: int) -> ExampleInputs:
    """Random inputs, the same each time."""
    return source.takes.drawn(batch, source.seed)


def _dense_reasons(network: nn.Module, groups: Sequence[Group], options: PruneOptions) -> list[str]:
    """Why each group is left dense, or an empty string; every pattern to keep must match a module."""
    names = [name for name, _ in network.named_modules() if name]
    unmatched = [pattern for pattern in options.keep if not fnmatch.filter(names, pattern)]
    if unmatched:
        shown = ", ".join(names[:6])
        raise TargetError(
            f"`keep` {', '.join(unmatched)} matches no module; names look like {shown}, … (shell patterns, "
            "such as 'layer4.*'). `pruneport inspect` lists them."
        )
    return [why_dense(group, options, _kept_by(group, options.keep)) for group in groups]


def _kept_by(group: Group, patterns: Sequence[str]) -> str | None:
    """The first pattern that one of the group's layers matches."""
    for pattern in patterns:
        if any(fnmatch.fnmatchcase(member.module, pattern) for member in group.members):
            return pattern
    return None
