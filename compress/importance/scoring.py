"""How criteria score: from what they may look at, the weights, activations and gradients of a network, to its units."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pruneport.compress.activations.calibration import Calibration
from pruneport.compress.activations.least_squares import by_place, float64_device
from pruneport.compress.graph.dependency.channel_graph import ChannelGraph
from pruneport.compress.graph.groups import Group
from pruneport.compress.hooks import hooks_restored
from pruneport.compress.importance.consumers import visit_consumers
from pruneport.compress.importance.gradients import labels_for, synflow
from pruneport.compress.importance.group_scores import reduce_group, sum_of_squares
from pruneport.compress.importance.obs import unit_errors, weight_shares
from pruneport.errors import PruningError
from pruneport.models.inputs import InputShape, run_on
from pruneport.progress import Progress, Step

__all__ = [
    "Scoring",
    "activation",
    "block_hessian",
    "bn_scale",
    "by_loss",
    "fpgm",
    "l1",
    "lamp",
    "random_scores",
    "synaptic_flow",
    "weights_only",
]

_BatchNorm = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True, kw_only=True)
class Scoring:
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


def weights_only(score: Callable[[Tensor], Tensor]) -> Callable[[Scoring], list[Tensor]]:
    """A criterion that reads weights alone; all units are equal where a group has none."""

    def every_group(scoring: Scoring) -> list[Tensor]:
        by_group = [reduce_group(scoring.network, group, score) for group in scoring.groups]
        return [
            torch.ones(group.width, dtype=torch.float64) if scores is None else scores
            for group, scores in zip(scoring.groups, by_group, strict=True)
        ]

    return every_group


def l1(weight: Tensor) -> Tensor:
    """Sum of |w| (Li et al. 2017, arXiv 1608.08710)."""
    return weight.abs().sum(1, dtype=torch.float64)


def lamp(scoring: Scoring) -> list[Tensor]:
    """The unit's sum of w squared, divided by that of all units of the group that are at least as large (LAMP).

    Lee et al. 2021, arXiv 2010.07611, equation 5, with a unit in the place of a weight and its group in that of a
    layer: within a group the order is that of l2.
    """
    by_group = []
    for squares in weights_only(sum_of_squares)(scoring):
        order = squares.argsort(descending=True, stable=True)
        scores = torch.empty_like(squares)
        scores[order] = squares[order] / squares[order].cumsum(0).clamp_min(1e-300)
        by_group.append(scores)
    return by_group


def fpgm(weight: Tensor) -> Tensor:
    """Sum of the distances to all channels of the layer: those near the geometric median can be replaced.

    He et al. 2019, arXiv 1811.00250, equation 5.
    """
    flat = weight.double()
    return torch.cdist(flat, flat).sum(1)


def bn_scale(scoring: Scoring) -> list[Tensor]:
    """|gamma| of the BatchNorms that the unit passes (network slimming, Liu et al. 2017, arXiv 1708.06519)."""
    modules = dict(scoring.network.named_modules())
    by_group = []
    for group in scoring.groups:
        scores = reduce_group(
            scoring.network, group, l1, lambda member: isinstance(modules.get(member.module), _BatchNorm)
        )
        if scores is None:
            raise PruningError(
                f"`criterion=bn-scale` needs a BatchNorm with weights in every group; {group.name} has none. Leave it "
                f"dense with `keep` '{group.name}', or choose another criterion."
            )
        by_group.append(scores)
    return by_group


def activation(scoring: Scoring) -> list[Tensor]:
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


def block_hessian(scoring: Scoring) -> list[Tensor]:
    """Squared error of the consumers' outputs once the unit has gone, by structured optimal brain surgery."""
    by_group: dict[int, Tensor] = {}
    everything = range(len(scoring.groups))
    visits = visit_consumers(scoring.network, scoring.groups, everything, scoring.inputs.batches)
    for number, (index, consumers, _) in enumerate(visits, start=1):
        said = f"scoring group {number} of {len(scoring.groups)}: {scoring.groups[index].name}"
        scoring.progress(Step(said, number - 1, len(scoring.groups)))
        by_group[index] = unit_errors(scoring.network, scoring.groups[index], consumers)
    return [by_group[index] for index in everything]


def by_loss(score: Callable[..., list[Tensor]]) -> Callable[[Scoring], list[Tensor]]:
    """A criterion that reads the gradients of a loss."""

    def every_group(scoring: Scoring) -> list[Tensor]:
        labels = labels_for(scoring.network, scoring.inputs, scoring.labels)
        return score(scoring.network, scoring.groups, scoring.inputs.batches, labels)

    return every_group


def synaptic_flow(scoring: Scoring) -> list[Tensor]:
    """What flows through the unit when every weight is positive: see ``gradients.synflow``."""
    return synflow(scoring.network, scoring.groups, scoring.shape)


def random_scores(scoring: Scoring) -> list[Tensor]:
    """Uniform in [0, 1), seeded: the baseline that every criterion has to beat."""
    generator = torch.Generator().manual_seed(scoring.seed)
    return [torch.rand(group.width, generator=generator, dtype=torch.float64) for group in scoring.groups]
