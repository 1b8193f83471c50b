"""Importances of torch-pruning as criteria: each is asked for the groups of our graph."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch_pruning.pruner import importance

from pruneport.compress.activations.calibration import Batches
from pruneport.compress.graph.dependency.channel_graph import ChannelGraph
from pruneport.compress.graph.groups import Group
from pruneport.compress.importance.gradients import mean_gradient, mean_squared_gradient
from pruneport.compress.options import Importance
from pruneport.errors import PruningError

__all__ = ["IMPORTANCES", "gradients_wanted", "importances"]

IMPORTANCES: tuple[Any, ...] = (
    importance.GroupMagnitudeImportance,
    importance.LAMPImportance,
    importance.FPGMImportance,
    importance.BNScaleImportance,
    importance.RandomImportance,
    importance.GroupTaylorImportance,
    importance.GroupHessianImportance,
)
"""Those that need weights and gradients; OBDCImportance and ActivationImportance hook into passes of their own."""


def gradients_wanted(kind: type) -> Literal["none", "mean", "squared"]:
    """What an importance of this class reads in the parameters' ``grad``.

    Its Hessian is the mean of squared gradients over images. torch-pruning's own ``accumulate_grad`` keeps that of the
    last image alone (in 1.6.1 it looks for a name among parameters), so it is not called.
    """
    if issubclass(kind, importance.GroupHessianImportance):
        return "squared"
    return "mean" if issubclass(kind, importance.GroupTaylorImportance) else "none"


def importances(
    graph: ChannelGraph,
    groups: Sequence[Group],
    score: Importance,
    wanted: Literal["none", "mean", "squared"],
    batches: Batches = (),
    labels: Sequence[Tensor] = (),
    seed: int = 0,
) -> list[Tensor]:
    """Score the units of groups.

    Args:
        graph: Of the network, which is only read and run.
        groups: Those of its groups to score.
        score: The importance.
        wanted: What it reads in the parameters' ``grad``.
        batches: Images to take gradients with.
        labels: Their classes.
        seed: For importances that draw numbers.

    Returns:
        For each group (units,) float64; higher is kept.

    Raises:
        PruningError: The importance has no scores for a group, or not one for each channel.
    """
    if wanted != "none":
        graph = ChannelGraph.of(copy.deepcopy(graph.model), graph.coupling)
        if wanted == "squared":
            gradients = mean_squared_gradient(graph.model, batches, labels)
        else:
            _, gradients = mean_gradient(graph.model, batches, labels)
        for name, parameter in graph.model.named_parameters():
            parameter.grad = gradients[name].to(parameter.dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return [_of_units(graph, group, score) for group in groups]


def _of_units(graph: ChannelGraph, group: Group, score: Importance) -> Tensor:
    """The mean score of each unit's channels in the group's first layer."""
    asked = graph.group_of(group, group.units)
    with torch.no_grad():
        scores = score(asked)
    name = type(score).__name__
    if scores is None:
        raise PruningError(
            f"`criterion` {name} has no scores for {group.name}: it reads no layer of this group. Leave it dense with "
            f"`keep` '{group.name}', or choose another criterion."
        )
    units = graph.units_at(asked)
    if tuple(scores.shape) != (len(units),):
        raise PruningError(
            f"`criterion` {name} gave scores of shape {tuple(scores.shape)} for {group.name}; expected "
            f"({len(units)},), one for each channel that it was asked for."
        )
    place = {unit: number for number, unit in enumerate(group.units)}
    rows = torch.tensor([place[unit] for unit in units])
    sums = torch.zeros(group.width, dtype=torch.float64).index_add_(0, rows, scores.double().cpu())
    return sums / torch.bincount(rows, minlength=group.width)
