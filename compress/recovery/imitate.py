"""Imitation: all weights trained for a short while, on the same few unlabelled inputs, to compute the dense features.

As in MiR (Wang et al. 2022, arXiv 2201.02620) and PRACTISE (Wang & Wu 2022, arXiv 2202.07861) the features before the
pooling are compared, and what reads them is left as it is. We define: images are cropped, mirrored and mixed;
BatchNorms keep their statistics, as they will run; a tenth of the inputs chooses, by the features and the main output
together, the learning rate and the state.
"""

from __future__ import annotations

import copy
import itertools
import math
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pruneport.compress.activations.calibration import Batches
from pruneport.compress.activations.memory import ran_out_of_memory
from pruneport.compress.devices import CPU, in_tf32, random_state_kept
from pruneport.compress.finetune.optimizers import relative_rates
from pruneport.compress.finetune.steps import Stepper, open_fabric
from pruneport.compress.records import Imitated
from pruneport.compress.recovery.augment import augmented
from pruneport.compress.recovery.features import compared, distance, feature_place
from pruneport.errors import PruningError
from pruneport.models.images.tasks import mix
from pruneport.models.inputs import ExampleInputs, changed, rows_of_inputs
from pruneport.progress import Progress, Step, silent

__all__ = ["Effort", "imitate", "steps_in_all"]

_RATES = (3e-2, 1e-2, 3e-3, 1e-3)  # relative to the weights; each tried on a short training until one gains
_TRY = 0.15  # of the steps: a rate that is good for all of them brings nothing in much fewer
_MINUTES = 5.0  # where nothing else is asked for
_MOST_STEPS = 2000
_CHECKS = 20  # over the training
_PATIENCE = 10  # checks without a gain
_OVERTIME = 1.5  # times the minutes: a machine that became slower stops here
_WARMUP = 0.05
_MIXED = 0.5  # of the images


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long an imitation may take.

    Attributes:
        minutes: Gives the number of steps, by the time that one takes; None: 5, and on a GPU as long as it needs.
        steps: Their number, in the place of minutes: then everything follows from the seed.
        seed: Orders and augments the inputs.
    """

    minutes: float | None = None
    steps: int | None = None
    seed: int = 0


def imitate(
    dense: nn.Module,
    pruned: nn.Module,
    batches: Batches,
    tuning: Batches,
    effort: Effort,
    progress: Progress = silent,
) -> Imitated:
    """Train ``pruned`` in place to compute what ``dense`` does; it is left as it was where that brings nothing.

    Args:
        dense: The dense network in eval mode; it is only run.
        pruned: The pruned one, on the same device.
        batches: Inputs to train on.
        tuning: Others, which choose the learning rate and the state that is kept.
        effort: How long.
        progress: Told how far it is.

    Raises:
        PruningError: The pruned network cannot be trained.
    """
    parameter = next(pruned.parameters(), torch.zeros(()))
    with random_state_kept(parameter.device):
        return _Imitation(dense, pruned, batches, tuning, effort, progress, parameter.device).run()


def steps_in_all(done: Imitated) -> int:
    """Steps of an imitation together with those that chose its learning rate."""
    return done.steps + done.trial_steps


@dataclass(frozen=True, kw_only=True)
class _Run:
    """One training: its best state and that state's distance, and how it ended."""

    state: Mapping[str, Tensor]
    error: float
    steps: int
    stopped: Literal["steps", "time", "no gain", "diverged"]


class _Imitation:
    """What all trainings of one imitation share."""

    def __init__(
        self,
        dense: nn.Module,
        pruned: nn.Module,
        batches: Batches,
        tuning: Batches,
        effort: Effort,
        progress: Progress,
        device: torch.device,
    ) -> None:
        self._dense, self._pruned, self._batches, self._effort = dense, pruned, batches, effort
        self._progress, self._started = progress, time.monotonic()
        self._device = device
        self._fabric = open_fabric("cpu", 1, "32")  # the networks are placed, on whatever device
        self._place = feature_place(dense, pruned, rows_of_inputs(self._moved(batches[0]()), slice(2)))
        self._tuning = [self._moved(load()) for load in tuning]
        self._wanted = [self._teach(inputs) for inputs in self._tuning]
        self._variances = [
            max(float(torch.cat([part[part.isfinite()] for part in parts]).var()), 1e-12)
            for parts in zip(*self._wanted, strict=True)
        ]
        self._start = {name: tensor.detach().clone() for name, tensor in pruned.state_dict().items()}

    def run(self) -> Imitated:
        """Train with the highest learning rate that gains in a short training, and keep the best of all states.

        Short trainings are not compared with one another: the longer one is, the higher the rate that is best for it.
        """
        before = self._error(self._pruned)
        if not math.isfinite(before):
            raise PruningError(
                "the pruned network's features are no finite numbers; prune less, or check `mean` and `std`."
            )
        steps = self._effort.steps or self._affordable()
        tries: dict[float, _Run] = {}
        for rate in _RATES:
            tries[rate] = self._train(rate, max(1, round(_TRY * steps)), f"trying rate {rate:g}")
            if tries[rate].error < before:
                break
        rate = min(tries, key=lambda rate: tries[rate].error)
        done = self._train(rate, steps, "imitating")
        best = min((*tries.values(), done), key=lambda run: run.error)
        gained = best.error < before
        self._pruned.load_state_dict(best.state if gained else self._start)
        return Imitated(
            steps=done.steps,
            planned=steps,
            trial_steps=sum(run.steps for run in tries.values()),
            learning_rate=rate,
            tuning=sum(len(parts[0]) for parts in self._wanted),
            features=self._place,
            distance_before=before,
            distance_after=min(best.error, before),
            stopped=done.stopped,
            kept="imitation" if gained else "reconstruction",
        )

    def _train(self, rate: float, steps: int, what: str) -> _Run:
        """One training from where reconstruction ended, with the best state of its checks."""
        stepper = self._begun(rate)
        network = stepper.network
        best, state, worse = math.inf, self._start, 0
        stopped: Literal["steps", "time", "no gain", "diverged"] = "steps"
        batches, step = self._shuffled(), 0
        while step < steps:
            if not math.isfinite(self._step(stepper, next(batches), step, steps)):
                stopped = "diverged"
                break
            step += 1
            if step * _CHECKS // steps > (step - 1) * _CHECKS // steps:
                error = self._error(network)
                self._progress(Step(f"{what}: step {step} of {steps}, distance {error:.4f}", step, steps))
                worse = 0 if error < best else worse + 1
                if error < best:
                    best, state = error, {name: tensor.clone() for name, tensor in network.state_dict().items()}
                if worse >= _PATIENCE and step < steps:
                    stopped = "no gain"
                    break
            if self._late():
                stopped = "time"
                break
        return _Run(state=state, error=best, steps=step, stopped=stopped)

    def _begun(self, rate: float) -> Stepper:
        """A copy of the pruned network as it was given, all of whose weights learn."""
        network = copy.deepcopy(self._pruned).eval()
        for parameter in network.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        return Stepper(self._fabric, network, relative_rates(network, rate, self._device), {}, placed=True)

    def _step(self, stepper: Stepper, inputs: ExampleInputs, step: int, steps: int) -> float:
        seed = mix(self._effort.seed, step)
        shown = augmented(self._moved(inputs), seed, _MIXED)

        def loss_of(model: nn.Module) -> Tensor:
            return distance(compared(model, shown, self._place)[:1], wanted[:1], self._variances[:1])

        try:
            with in_tf32():
                wanted = self._teach(shown)
                return stepper.step(loss_of, (step + 0.5) / steps, _WARMUP, seed)
        except RuntimeError as error:
            if ran_out_of_memory(error):
                raise
            raise PruningError(
                f"the pruned network cannot be trained to imitate the dense one ({error}); choose "
                "`recover=reconstruct`."
            ) from error

    def _affordable(self) -> int:
        """Steps for which there is time, by one that is not kept; less is left for the tries than they take."""
        minutes = self._effort.minutes
        if minutes is None:
            if self._device != CPU:
                return _MOST_STEPS
            minutes = _MINUTES
        stepper, batches = self._begun(0.0), self._shuffled()
        self._step(stepper, next(batches), 0, 1)  # the first takes longer
        start = time.monotonic()
        self._step(stepper, next(batches), 0, 1)
        each = time.monotonic() - start
        left = 60 * minutes - (time.monotonic() - self._started)
        return max(1, min(_MOST_STEPS, int(left / each / (1 + _TRY * len(_RATES)))))

    def _late(self) -> bool:
        minutes = self._effort.minutes
        if self._effort.steps or (minutes is None and self._device != CPU):
            return False
        return time.monotonic() - self._started > _OVERTIME * 60 * (minutes or _MINUTES)

    @torch.no_grad()
    def _teach(self, inputs: ExampleInputs) -> list[Tensor]:
        return compared(self._dense, inputs, self._place)

    @torch.no_grad()
    def _error(self, network: nn.Module) -> float:
        """Distance on the inputs that were set aside, as they are."""
        counts = [len(wanted[0]) for wanted in self._wanted]
        parts = [
            distance(compared(network, inputs, self._place), wanted, self._variances)
            for inputs, wanted in zip(self._tuning, self._wanted, strict=True)
        ]
        error = sum(float(part) * count for part, count in zip(parts, counts, strict=True)) / sum(counts)
        return error if math.isfinite(error) else math.inf

    def _shuffled(self) -> Iterator[ExampleInputs]:
        """Batches for ever, each pass in another order."""
        for number in itertools.count():
            order = [*self._batches]
            random.Random(mix(self._effort.seed, number)).shuffle(order)
            yield from (load() for load in order)

    def _moved(self, inputs: ExampleInputs) -> ExampleInputs:
        return changed(inputs, lambda tensor: tensor.to(self._device))
