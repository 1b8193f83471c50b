"""Pruning while training: widths are cut in steps, each when the loss has come back from the one before.

The first paper names pruning that adapts to the target loss as future work (arXiv 2304.13164); how it waits is ours.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pruneport.compress.activations.calibration import BATCH, Calibration, in_memory
from pruneport.compress.assessment import Assessment, assess
from pruneport.compress.devices import CPU, in_full_precision, with_smaller_batches
from pruneport.compress.finetune.state import TrainState
from pruneport.compress.importance.criteria import resolve_auto, wants_inputs
from pruneport.compress.options import PruneOptions
from pruneport.compress.prune import prune
from pruneport.compress.records import Calibrated
from pruneport.compress.surgery.apply import apply_plan
from pruneport.compress.surgery.compose import compose
from pruneport.compress.surgery.plan import Plan, parse_plan
from pruneport.compress.surgery.rebuild import rebuild_network
from pruneport.errors import PruningError, TargetError
from pruneport.models.images.images import ImageSet
from pruneport.models.record import Factory
from pruneport.progress import Progress, silent
from pruneport.sequences import evenly

__all__ = ["average_loss", "cut", "cut_by_the_first", "is_due"]

_MEMORY = 0.9  # of the exponential average
_SETTLED = 10  # steps after a cut before its average means anything
_LAST = 2 / 3  # of the training, when all cuts have been made
_CALIBRATION = 128  # training images that a criterion sees
_SLACK = 1.02  # the loss has come back when it is this close


def average_loss(state: TrainState, loss: float) -> float:
    """The exponential average with this step's loss."""
    return loss if state.average is None else _MEMORY * state.average + (1 - _MEMORY) * loss


def is_due(state: TrainState, progress: float, warmup: float, cuts: int) -> bool:
    """Whether the next cut is made now.

    Args:
        state: With the cuts made so far, the average loss, and its level before the last cut.
        progress: Share of the training that is done.
        warmup: No cut is made earlier.
        cuts: How many there are in all.
    """
    if state.cuts >= cuts or progress < warmup:
        return False
    if progress >= warmup + (_LAST - warmup) * (state.cuts + 1) / cuts:
        return True  # waiting any longer would leave the last ones no time
    recovered = state.level is None or (state.average is not None and state.average <= _SLACK * state.level)
    return recovered and (not state.cuts or state.step >= state.cut_step + _SETTLED)


def cut(
    network: nn.Module,
    state: TrainState,
    options: PruneOptions,
    share: float,
    images: ImageSet,
    progress: Progress = silent,
    device: torch.device = CPU,
) -> tuple[nn.Module, Plan, dict[str, Tensor]]:
    """Prune a network in training to a share of its present compute.

    Args:
        network: On the CPU; it is left as it is.
        state: Its plan and the optimizer's momenta.
        options: Scope, criterion and widths; the target is replaced.
        share: Of the present multiply-accumulates.
        images: Labelled ones, for criteria that look at data.
        progress: Told what is being done.
        device: Where it is scored and measured.

    Returns:
        The smaller network, the plan of all that was cut so far, and the momenta without what is gone.

    Raises:
        TargetError: The share is out of reach.
    """
    dense = copy.deepcopy(network).eval()
    source, options = state.plan.source, resolve_auto(replace(options, flops=share), calibrated=False)
    calibration = _calibration(images) if wants_inputs(options, calibrated=True) else None

    def assessed(given: Calibration | None) -> Assessment:
        return assess(dense, source, options, given, progress=progress, device=device)

    with in_full_precision():
        if calibration is None:
            assessment = assessed(None)
        else:
            assessment, _ = with_smaller_batches(assessed, calibration, progress)
    further = prune(dense, source, options, progress, assessment)
    momenta: dict[str, Tensor] = {}
    for quantity in dict.fromkeys(key.partition("/")[0] for key in state.momenta):
        momenta |= _narrowed(dense, quantity, state.momenta, further.plan)
    plan = replace(compose(state.plan, further.plan), recovery=state.plan.recovery, note=None)
    return further.network, plan, momenta


def cut_by_the_first(
    fabric: Any,
    network: nn.Module,
    state: TrainState,
    options: PruneOptions,
    share: float,
    images: ImageSet,
    factory: Factory | None,
    progress: Progress = silent,
) -> tuple[nn.Module, Plan, dict[str, Tensor]] | Exception:
    """The same cut in all processes of a training: what the first one makes, or why there is none.

    Each has BatchNorm statistics of its own images, by which it would score, and choose, other units.

    Args:
        fabric: Of the processes.
        network: On any device; it is moved to the CPU.
        state: As in ``cut``.
        options: As in ``cut``.
        share: As in ``cut``.
        images: As in ``cut``.
        factory: Builds the architecture in place of the source's.
        progress: As in ``cut``.
    """
    made: tuple[nn.Module, Plan, dict[str, Tensor]] | Exception | None = None
    if fabric.global_rank == 0:
        try:
            made = cut(network.cpu(), state, options, share, images, progress, fabric.device)
        except (TargetError, PruningError) as error:
            made = error
    if fabric.world_size > 1:
        sent = (made[1].to_json(), dict(made[0].state_dict()), made[2]) if isinstance(made, tuple) else made
        sent = fabric.broadcast(sent)
        if isinstance(sent, Exception):
            return sent
        content, weights, momenta = sent
        plan = parse_plan(content, {name: tuple(value.shape) for name, value in weights.items()})
        return rebuild_network(plan, weights, factory), plan, momenta
    assert made is not None
    return made


def _calibration(images: ImageSet) -> Calibration:
    """Training images for the scores, spread over the whole set."""
    count = min(_CALIBRATION, len(images))
    parts = images.part(evenly(range(len(images)), count)).spread(BATCH)
    loaded = [next(part.batches(len(part))) for part in parts]
    return Calibration(
        batches=in_memory([inputs for inputs, _ in loaded]),
        labels=tuple(labels for _, labels in loaded if labels is not None),
        classes=len(images.classes),
        record=Calibrated(inputs="images", count=count),
    )


def _narrowed(network: nn.Module, quantity: str, momenta: Mapping[str, Tensor], plan: Plan) -> dict[str, Tensor]:
    """Shrink one quantity of the optimizer as the parameters shrink: a network that holds it in their place."""
    shadow = copy.deepcopy(network)
    parameters = dict(shadow.named_parameters())
    values = {name: momenta[key] for name in parameters if (key := f"{quantity}/{name}") in momenta}
    numbers = {name for name, value in values.items() if value.shape != parameters[name].shape}  # Adam's count of steps
    with torch.no_grad():
        for name in values.keys() - numbers:
            parameters[name].copy_(values[name])
    apply_plan(shadow, plan.groups, plan.attributes, plan.sizes, plan.branches)
    shrunk = dict(shadow.named_parameters())
    return {
        f"{quantity}/{name}": value if name in numbers else shrunk[name].detach()
        for name, value in values.items()
        if name in shrunk  # else it went with a dropped branch
    }
