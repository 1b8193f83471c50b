"""What is known of a network before a target is set: its groups, what they cost, their scores and sensitivities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from pruneport.compress.activations.calibration import Calibration
from pruneport.compress.activations.statistics import seeing
from pruneport.compress.allocation.cost import Cost
from pruneport.compress.calibration_inputs import solvable
from pruneport.compress.devices import CPU, loaded_on, network_on
from pruneport.compress.graph.branches import droppable_branches
from pruneport.compress.graph.groups import Group
from pruneport.compress.graph.widths import Scores, possible_widths
from pruneport.compress.importance.criteria import name_of, resolve_auto, runs_on_inputs, score_groups, wants_inputs
from pruneport.compress.importance.drops import measure_drops
from pruneport.compress.importance.sensitivity import Curve, measure_sensitivity
from pruneport.compress.options import PruneOptions
from pruneport.compress.structure import Structure, find_structure
from pruneport.errors import ImageFolderError
from pruneport.models.record import Source
from pruneport.progress import Progress, silent

__all__ = ["Assessment", "GroupView", "assess", "describe_groups"]


@dataclass(frozen=True, kw_only=True)
class Assessment(Structure):
    """All that is known of the groups before a target is set, one entry a group.

    Attributes:
        scores: (units,) each; the highest are kept.
        curves: The measured sensitivity; None where the ranking does without, or the group stays dense.
        drop_damage: What dropping a branch costs, as ``Curve.damage`` says it, by its name; empty where the ranking
            does without.
    """

    scores: list[Scores]
    curves: list[Curve | None]
    drop_damage: Mapping[str, float] = field(default_factory=dict)


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
    structure: Structure | None = None,
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
        structure: What ``find_structure`` gave for the same, where that was traced before.

    Raises:
        ImageFolderError: Inputs are needed and none are given, or their labels do not fit the network.
        ModelError: The network refuses the input shape.
        PruningError: Its dependencies cannot be traced, or it cannot be scored, as on inputs that are all the same.
        TargetError: A pattern in ``keep`` matches nothing.
    """
    options = resolve_auto(options, calibration is not None)
    if wants_inputs(options, calibration is not None) and calibration is None:
        raise ImageFolderError(
            f"criterion {name_of(options.criterion)} with ranking {options.ranking} needs inputs: give a calibration."
        )
    if structure is None:
        structure = find_structure(network, source, options, progress, original)
    structure = replace(structure, options=options)
    groups = structure.groups
    free = [not reason for reason in structure.reasons]
    measured = options.ranking == "sensitivity"
    placed = None if calibration is None else replace(calibration, batches=loaded_on(device, calibration.batches))
    subject = network
    if placed is not None and (measured or runs_on_inputs(options.criterion)):
        subject = network_on(device, network)
        if placed.record.inputs == "synthetic":
            subject = seeing(subject, placed.batches, progress)
    scores: list[Scores] | None = None
    curves: list[Curve | None] = [None] * len(groups)
    drop_damage: Mapping[str, float] = {}
    with solvable():
        if not (measured and options.criterion == "block-hessian"):  # else one visit gives both
            units = sum(group.width for group in groups)
            progress(f"scoring {units} units in {len(groups)} groups by {name_of(options.criterion)}")
            scores = score_groups(
                subject if runs_on_inputs(options.criterion) else network,
                groups,
                free,
                options.criterion,
                source.seed,
                source.takes,
                placed if runs_on_inputs(options.criterion) else calibration,
                labels,
                progress,
                structure.graph,
            )
        if measured:
            assert placed is not None
            widths = [possible_widths(group, options) if ok else None for group, ok in zip(groups, free, strict=True)]
            scores, curves = measure_sensitivity(subject, groups, widths, placed.batches, scores, progress)
            order = structure.coupling.order
            drop_damage = measure_drops(subject, groups, structure.branches, order, placed.batches, progress)
    assert scores is not None
    return Assessment(**vars(structure), scores=scores, curves=curves, drop_damage=drop_damage)


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
        structure: Structure = assessed
        curves = assessed.curves
    else:
        structure = find_structure(network, source, options, progress)
        curves = [None] * len(structure.groups)
    branches = droppable_branches(network, structure.groups, structure.coupling.branches, options.keep)
    branch_of = {index: branch.name for branch in branches for index in branch.groups}
    views = [
        GroupView(
            group=group,
            cost=structure.cost.group_cost(index),
            reason=structure.reasons[index],
            curve=curves[index],
            branch=branch_of.get(index, ""),
        )
        for index, group in enumerate(structure.groups)
    ]
    return structure.cost.dense, views
