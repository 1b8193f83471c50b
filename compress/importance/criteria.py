"""Criteria: what makes a unit (a set of coupled channels) worth keeping. One registry of all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from pruneport.compress.activations.calibration import Calibration
from pruneport.compress.activations.least_squares import by_place, float64_device
from pruneport.compress.graph.dependency import ChannelGraph
from pruneport.compress.graph.groups import Group
from pruneport.compress.graph.widths import Scores
from pruneport.compress.hooks import hooks_restored
from pruneport.compress.importance.consumers import visit_consumers
from pruneport.compress.importance.gradients import fisher, grasp, labels_for, snip, synflow, taylor
from pruneport.compress.importance.group_scores import reduce_group, sum_of_squares
from pruneport.compress.importance.obs import unit_errors, weight_shares
from pruneport.compress.importance.torch_pruning_scores import IMPORTANCES, gradients_wanted, importances
from pruneport.compress.options import Importance, PruneOptions
from pruneport.errors import ImageFolderError, PruningError
from pruneport.models.inputs import InputShape, run_on
from pruneport.progress import Progress, Step, silent

__all__ = [
    "CRITERIA",
    "Criterion",
    "criterion_of",
    "name_of",
    "resolve_auto",
    "runs_on_inputs",
    "score_groups",
    "wants_inputs",
]

_BatchNorm = nn.modules.batchnorm._BatchNorm
_OTHERS = "torch_pruning:"


@dataclass(frozen=True, kw_only=True)
class _Scoring:
    """What a criterion may look at; ``calibration`` is there for those that need it."""

    network: nn.Module
    groups: Sequence[Group]
    graph: ChannelGraph | None
    shape: InputShape
    calibration: Calibration | None
    labels: str
    seed: int
    progress: Progress

    @property
    def inputs(self) -> Calibration:
        """The calibration, which whoever needs it was promised."""
        assert self.calibration is not None
        return self.calibration


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """One entry of the registry.

    Attributes:
        score: Gives for each group (units,) float64; higher is kept.
        needs: Weights alone; inputs, which may be synthetic; or images of the task.
        comparable: Scores of different groups mean the same as they are; else each group's are divided by their
            mean size before groups compete.
    """

    score: Callable[[_Scoring], list[Tensor]]
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
    scoring = _Scoring(
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

    def every_group(scoring: _Scoring) -> list[Tensor]:
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


def _weights_only(score: Callable[[Tensor], Tensor]) -> Callable[[_Scoring], list[Tensor]]:
    """A criterion that reads weights alone; all units are equal where a group has none."""

    def every_group(scoring: _Scoring) -> list[Tensor]:
        by_group = [reduce_group(scoring.network, group, score) for group in scoring.groups]
        return [
            torch.ones(group.width, dtype=torch.float64) if scores is None else scores
            for group, scores in zip(scoring.groups, by_group, strict=True)
        ]

    return every_group


def _l1(weight: Tensor) -> Tensor:
    """Sum of |w| (Li et al. 2017, arXiv 1608.08710)."""
    return weight.abs().sum(1, dtype=torch.float64)


def _lamp(scoring: _Scoring) -> list[Tensor]:
    """The unit's sum of w squared, divided by that of all units of the group that are at least as large (LAMP).

    Lee et al. 2021, arXiv 2010.07611, equation 5, with a unit in the place of a weight and its group in that of a
    layer: within a group the order is that of l2.
    """
    by_group = []
    for squares in _weights_only(sum_of_squares)(scoring):
        order = squares.argsort(descending=True, stable=True)
        scores = torch.empty_like(squares)
        scores[order] = squares[order] / squares[order].cumsum(0).clamp_min(1e-300)
        by_group.append(scores)
    return by_group


def _fpgm(weight: Tensor) -> Tensor:
    """Sum of the distances to all channels of the layer: those near the geometric median can be replaced.

    He et al. 2019, arXiv 1811.00250, equation 5.
    """
    flat = weight.double()
    return torch.cdist(flat, flat).sum(1)


def _bn_scale(scoring: _Scoring) -> list[Tensor]:
    """|gamma| of the BatchNorms that the unit passes (network slimming, Liu et al. 2017, arXiv 1708.06519)."""
    modules = dict(scoring.network.named_modules())
    by_group = []
    for group in scoring.groups:
        scores = reduce_group(
            scoring.network, group, _l1, lambda member: isinstance(modules.get(member.module), _BatchNorm)
        )
        if scores is None:
            raise PruningError(
                f"`criterion=bn-scale` needs a BatchNorm with weights in every group; {group.name} has none. Leave it "
                f"dense with `keep` '{group.name}', or choose another criterion."
            )
        by_group.append(scores)
    return by_group


def _activation(scoring: _Scoring) -> list[Tensor]:
    """Mean |activation| of the unit where its consumers read it (Molchanov et al. 2017, arXiv 1611.06440).

    Where none is seen to (see ``weight_shares``), its weights decide.
    """
    by_group = []
    sums: dict[str, Tensor] = {}

    def add(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            read = by_place(layer, inputs[0]).abs().to(float64_device(inputs[0].device))
            sums[name] = sums.get(name, 0) + read.mean(0, dtype=torch.float64).cpu()

        return hook

    with hooks_restored(scoring.network), torch.inference_mode():
        for name in {name for group in scoring.groups for name in group.consumers}:
            scoring.network.get_submodule(name).register_forward_pre_hook(add(name))
        for load in scoring.inputs.batches:
            run_on(scoring.network, load())
    for group in scoring.groups:
        rows = [sums[m.module][m.positions].mean(1) for m in group.members if m.axis == "in" and m.module in sums]
        by_group.append(torch.stack(rows).mean(0) if rows else weight_shares(scoring.network, group))
    return by_group


def _block_hessian(scoring: _Scoring) -> list[Tensor]:
    """Squared error of the consumers' outputs once the unit has gone, by structured optimal brain surgery."""
    by_group: dict[int, Tensor] = {}
    everything = range(len(scoring.groups))
    visits = visit_consumers(scoring.network, scoring.groups, everything, scoring.inputs.batches)
    for number, (index, consumers, _) in enumerate(visits, start=1):
        said = f"scoring group {number} of {len(scoring.groups)}: {scoring.groups[index].name}"
        scoring.progress(Step(said, number - 1, len(scoring.groups)))
        by_group[index] = unit_errors(scoring.network, scoring.groups[index], consumers)
    return [by_group[index] for index in everything]


def _by_loss(score: Callable[..., list[Tensor]]) -> Callable[[_Scoring], list[Tensor]]:
    """A criterion that reads the gradients of a loss."""

    def every_group(scoring: _Scoring) -> list[Tensor]:
        labels = labels_for(scoring.network, scoring.inputs, scoring.labels)
        return score(scoring.network, scoring.groups, scoring.inputs.batches, labels)

    return every_group


def _synflow(scoring: _Scoring) -> list[Tensor]:
    return synflow(scoring.network, scoring.groups, scoring.shape)


def _random(scoring: _Scoring) -> list[Tensor]:
    """Uniform in [0, 1), seeded: the baseline that every criterion has to beat."""
    generator = torch.Generator().manual_seed(scoring.seed)
    return [torch.rand(group.width, generator=generator, dtype=torch.float64) for group in scoring.groups]


CRITERIA: Mapping[str, Criterion] = MappingProxyType(
    {
        "l1": Criterion(score=_weights_only(_l1)),
        "l2": Criterion(score=_weights_only(sum_of_squares)),
        "lamp": Criterion(score=_lamp, comparable=True),
        "fpgm": Criterion(score=_weights_only(_fpgm)),
        "bn-scale": Criterion(score=_bn_scale, comparable=True),
        "synflow": Criterion(score=_synflow, comparable=True),
        "random": Criterion(score=_random),
        "activation": Criterion(score=_activation, needs="inputs"),
        "block-hessian": Criterion(score=_block_hessian, needs="inputs", comparable=True),
        "taylor": Criterion(score=_by_loss(taylor), needs="images", comparable=True),
        "snip": Criterion(score=_by_loss(snip), needs="images", comparable=True),
        "grasp": Criterion(score=_by_loss(grasp), needs="images", comparable=True),
        "fisher": Criterion(score=_by_loss(fisher), needs="images", comparable=True),
        **{f"{_OTHERS}{kind.__name__}": _importance(kind, kind) for kind in IMPORTANCES},
    }
)
