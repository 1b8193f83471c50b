"""Criteria: what makes a unit (a set of coupled channels) worth keeping. One registry of all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

import numpy as np
from torch import Tensor, nn

from pruneport.compress.activations.calibration import Calibration
from pruneport.compress.graph.dependency.channel_graph import ChannelGraph
from pruneport.compress.graph.groups import Group
from pruneport.compress.graph.widths import Scores
from pruneport.compress.importance.gradients import fisher, grasp, labels_for, snip, taylor
from pruneport.compress.importance.group_scores import sum_of_squares
from pruneport.compress.importance.scoring import (
    Scoring,
    activation,
    block_hessian,
    bn_scale,
    by_loss,
    fpgm,
    l1,
    lamp,
    random_scores,
    synaptic_flow,
    weights_only,
)
from pruneport.compress.importance.torch_pruning_scores import IMPORTANCES, gradients_wanted, importances
from pruneport.compress.options import Importance, PruneOptions
from pruneport.errors import ImageFolderError
from pruneport.models.inputs import InputShape
from pruneport.progress import Progress, silent

__all__ = [
    "BY_LABELS",
    "CRITERIA",
    "Criterion",
    "criterion_of",
    "name_of",
    "reads_labels",
    "resolve_auto",
    "runs_on_inputs",
    "score_groups",
    "wants_inputs",
]

_OTHERS = "torch_pruning:"


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """One entry of the registry.

    Attributes:
        score: Gives for each group (units,) float64; higher is kept.
        needs: Weights alone; inputs, which may be synthetic; or images of the task.
        comparable: Scores of different groups mean the same as they are; else each group's are divided by their
            mean size before groups compete.
    """

    score: Callable[[Scoring], list[Tensor]]
    needs: Literal["weights", "inputs", "images"] = "weights"
    comparable: bool = False


def resolve_auto(options: PruneOptions, calibrated: bool) -> PruneOptions:
    """Put the best that the inputs allow in the place of ``auto``; depth always needs what is measured."""
    criterion, ranking = options.criterion, options.ranking
    if criterion == "auto":
        criterion = "block-hessian" if calibrated else "l1"
    if ranking == "auto":
        ranking = "sensitivity" if calibrated or options.depth == "auto" else "uniform"
    return replace(options, criterion=criterion, ranking=ranking)


def wants_inputs(options: PruneOptions, calibrated: bool) -> bool:
    """Whether scoring or ranking needs inputs of the network.

    Raises:
        ImageFolderError: The criterion needs images of the task and none are given.
    """
    options = resolve_auto(options, calibrated)
    criterion = criterion_of(options.criterion)
    if criterion.needs == "images" and not calibrated:
        without = ", ".join(name for name, entry in CRITERIA.items() if entry.needs != "images")
        raise ImageFolderError(
            f"`criterion={name_of(options.criterion)}` needs images: give `calibration=FOLDER`, or choose one of "
            f"{without}."
        )
    return criterion.needs != "weights" or options.ranking == "sensitivity"


def reads_labels(options: PruneOptions, calibrated: bool) -> bool:
    """Whether the criterion has a loss, for which images have labels."""
    return criterion_of(resolve_auto(options, calibrated).criterion).needs == "images"


def runs_on_inputs(criterion: str | Importance) -> bool:
    """Whether it runs the network on inputs by our code; torch-pruning's read the network that their graph is of."""
    return isinstance(criterion, str) and not criterion.startswith(_OTHERS) and CRITERIA[criterion].needs != "weights"


def score_groups(
    network: nn.Module,
    groups: Sequence[Group],
    free: Sequence[bool],
    criterion: str | Importance,
    seed: int,
    shape: InputShape,
    calibration: Calibration | None = None,
    labels: str = "auto",
    progress: Progress = silent,
    graph: ChannelGraph | None = None,
) -> list[Scores]:
    """Score every unit of every group that may be pruned.

    Args:
        network: The dense network; it is only read and run.
        groups: Its groups.
        free: Whether each may be pruned; the others score one throughout.
        criterion: A key of ``CRITERIA``, or an importance of torch-pruning.
        seed: For criteria that draw numbers.
        shape: Of the network's input.
        calibration: For criteria that need inputs.
        labels: For criteria with a loss: ``folder``, ``predicted`` or ``auto``.
        progress: Told what is being done.
        graph: The network's, which torch-pruning's importances need.

    Returns:
        For each group its scores (units,), ready to be compared across groups.

    Raises:
        ImageFolderError: The labels do not fit the network's outputs.
        PruningError: A group has nothing that the criterion scores by, or gradients are not finite.
    """
    entry = criterion_of(criterion)
    prunable = [group for group, is_free in zip(groups, free, strict=True) if is_free]
    scoring = Scoring(
        network=network,
        groups=prunable,
        graph=graph,
        shape=shape,
        calibration=calibration,
        labels=labels,
        seed=seed,
        progress=progress,
    )
    raw = iter(entry.score(scoring) if prunable else [])
    return [
        _scaled(next(raw).numpy(), entry.comparable) if is_free else np.ones(group.width)
        for group, is_free in zip(groups, free, strict=True)
    ]


def criterion_of(criterion: str | Importance) -> Criterion:
    """The registry's entry of this name, or one for an importance of torch-pruning."""
    return CRITERIA[criterion] if isinstance(criterion, str) else _importance(lambda: criterion, type(criterion))


def name_of(criterion: str | Importance) -> str:
    """What a criterion is called in plans and messages."""
    if isinstance(criterion, str):
        return criterion
    kind = type(criterion)
    library = kind.__module__.partition(".")[0]
    return f"{library if library == 'torch_pruning' else kind.__module__}:{kind.__qualname__}"


def _importance(make: Callable[[], Importance], kind: type) -> Criterion:
    """A criterion by an importance of torch-pruning, whose own normaliser makes groups comparable."""

    def every_group(scoring: Scoring) -> list[Tensor]:
        assert scoring.graph is not None
        labels = labels_for(scoring.network, scoring.inputs, scoring.labels) if wanted != "none" else []
        batches = scoring.inputs.batches if wanted != "none" else []
        return importances(scoring.graph, scoring.groups, make(), wanted, batches, labels, scoring.seed)

    wanted = gradients_wanted(kind)
    return Criterion(score=every_group, needs="weights" if wanted == "none" else "images", comparable=True)


def _scaled(raw: Scores, comparable: bool) -> Scores:
    """Scores over their mean size, where groups could not be compared; equal ones where there is none."""
    size = float(np.abs(raw).mean())
    if not np.isfinite(size) or size == 0:
        return np.ones_like(raw)
    return raw if comparable else raw / size


CRITERIA: Mapping[str, Criterion] = MappingProxyType(
    {
        "l1": Criterion(score=weights_only(l1)),
        "l2": Criterion(score=weights_only(sum_of_squares)),
        "lamp": Criterion(score=lamp, comparable=True),
        "fpgm": Criterion(score=weights_only(fpgm)),
        "bn-scale": Criterion(score=bn_scale, comparable=True),
        "synflow": Criterion(score=synaptic_flow, comparable=True),
        "random": Criterion(score=random_scores),
        "activation": Criterion(score=activation, needs="inputs"),
        "block-hessian": Criterion(score=block_hessian, needs="inputs", comparable=True),
        "taylor": Criterion(score=by_loss(taylor), needs="images", comparable=True),
        "snip": Criterion(score=by_loss(snip), needs="images", comparable=True),
        "grasp": Criterion(score=by_loss(grasp), needs="images", comparable=True),
        "fisher": Criterion(score=by_loss(fisher), needs="images", comparable=True),
        **{f"{_OTHERS}{kind.__name__}": _importance(kind, kind) for kind in IMPORTANCES},
    }
)
BY_LABELS = tuple(name for name, entry in CRITERIA.items() if entry.needs == "images")
"""Names of those that have a loss."""
