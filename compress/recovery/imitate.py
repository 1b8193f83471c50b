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
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pruneport.compress.activations.calibration import Batches
from pruneport.compress.activations.memory import ran_out_of_memory
from pruneport.compress.devices import CPU, in_tf32, random_state_kept
from pruneport.compress.finetune.optimizers import relative_rates
from pruneport.compress.finetune.state import optimizer_tensors
from pruneport.compress.finetune.steps import Stepper, open_fabric
from pruneport.compress.records import Imitated
from pruneport.compress.recovery.augment import augmented
from pruneport.compress.recovery.features import compared, distance, feature_place
from pruneport.compress.recovery.imitation_state import (
    Ended,
    ImitationState,
    ImitationTraining,
    Unfinished,
    copied_state,
)
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
_SAVE_EVERY_S = 60.0


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
    unfinished: Unfinished | None = None,
) -> Imitated:
    """Train ``pruned`` in place to compute what ``dense`` does; it is left as it was where that brings nothing.

    Args:
        dense: The dense network in eval mode; it is only run.
        pruned: The pruned one, on the same device.
        batches: Inputs to train on.
        tuning: Others, which choose the learning rate and the state that is kept.
        effort: How long.
        progress: Told how far it is.
        unfinished: Where it is saved meanwhile. One that was stopped goes on from there, step by step as it would have,
            if ``pruned`` is again as it was at its start.

    Raises:
        OSError: It cannot be saved.
        PruningError: The pruned network cannot be trained.
    """
    parameter = next(pruned.parameters(), torch.zeros(()))
    with random_state_kept(parameter.device):
        return _Imitation(dense, pruned, batches, tuning, effort, progress, unfinished, parameter.device).run()


def steps_in_all(done: Imitated) -> int:
    """Steps of an imitation together with those that chose its learning rate."""
    return done.steps + done.trial_steps


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
        unfinished: Unfinished | None,
        device: torch.device,
    ) -> None:
        self._dense, self._pruned, self._batches, self._effort = dense, pruned, batches, effort
        self._progress, self._device, self._unfinished = progress, device, unfinished
        state = unfinished.imitation if unfinished else None
        if state is None or state.batches != len(batches):  # of other batches nothing goes on
            state = ImitationState(start=copied_state(pruned), batches=len(batches))
        self._state, self._saved = state, -math.inf
        self._started = time.monotonic() - state.seconds
        self._fabric = open_fabric("cpu", 1, "32")  # the networks are placed, on whatever device
        self._place = feature_place(dense, pruned, rows_of_inputs(self._moved(batches[0]()), slice(2)))
        self._tuning = [self._moved(load()) for load in tuning]
        self._wanted = [self._teach(inputs) for inputs in self._tuning]
        self._variances = [
            max(float(torch.cat([part[part.isfinite()] for part in parts]).var()), 1e-12)
            for parts in zip(*self._wanted, strict=True)
        ]

    def run(self) -> Imitated:
        """Train with the highest learning rate that gains in a short training, and keep the best of all states.

        Short trainings are not compared with one another: the longer one is, the higher the rate that is best for it.
        """
        state, before = self._state, self._error(self._pruned)
        if not math.isfinite(before):
            raise PruningError(
                "the pruned network's features are no finite numbers; prune less, or check `mean` and `std`."
            )
        state.steps = state.steps or self._effort.steps or self._affordable()
        for number, rate in enumerate(_RATES):
            if number == len(state.tries):
                state.tries.append(ImitationTraining(rate=rate, planned=max(1, round(_TRY * state.steps))))
            self._train(state.tries[number], f"trying rate {rate:g}")
            if state.tries[number].error < before:
                break
        if state.training is None:
            best = min(state.tries, key=lambda tried: tried.error)
            state.training = ImitationTraining(rate=best.rate, planned=state.steps)
        self._train(state.training, "imitating")
        gained = state.error < before
        self._pruned.load_state_dict(state.best if gained else state.start)
        return Imitated(
            steps=state.training.step,
            planned=state.steps,
            trial_steps=sum(tried.step for tried in state.tries),
            learning_rate=state.training.rate,
            tuning=sum(len(parts[0]) for parts in self._wanted),
            features=self._place,
            distance_before=before,
            distance_after=min(state.error, before),
            stopped=state.training.stopped or "steps",
            kept="imitation" if gained else "reconstruction",
        )

    def _train(self, training: ImitationTraining, what: str) -> None:
        """Train to the end, if it has not come to it: from where reconstruction ended, or where this was saved."""
        if training.stopped:
            return
        state = self._state
        stepper = self._begun(training.rate, state)
        batches = itertools.islice(self._shuffled(), training.step, None)
        while training.stopped is None:
            training.stopped = self._advance(stepper, next(batches)(), training, what)
            if training.stopped is not None:
                state.weights, state.momenta = {}, {}
            if self._unfinished is not None and (training.stopped or time.monotonic() - self._saved > _SAVE_EVERY_S):
                self._save(self._unfinished, stepper, training)

    def _advance(self, stepper: Stepper, inputs: ExampleInputs, training: ImitationTraining, what: str) -> Ended | None:
        """One step, and a check where one is due; returns why the training ended, where it did."""
        state, steps = self._state, training.planned
        if not math.isfinite(self._step(stepper, inputs, training.step, steps)):
            return "diverged"
        training.step += 1
        step = training.step
        if step * _CHECKS // steps > (step - 1) * _CHECKS // steps:
            error = self._error(stepper.network)
            self._progress(Step(f"{what}: step {step} of {steps}, distance {error:.4f}", step, steps))
            training.worse = 0 if error < training.error else training.worse + 1
            training.error = min(error, training.error)
            if error < state.error:
                state.error, state.best = error, copied_state(stepper.network)
            if training.worse >= _PATIENCE and step < steps:
                return "no gain"
        return "steps" if step == steps else "time" if self._late() else None

    def _save(self, unfinished: Unfinished, stepper: Stepper, training: ImitationTraining) -> None:
        """Write down how far it is."""
        state = self._state
        if training.stopped is None:
            state.weights = {name: tensor.detach() for name, tensor in stepper.network.state_dict().items()}
            state.momenta = optimizer_tensors(stepper.network, stepper.optimizer)
        state.seconds = time.monotonic() - self._started
        unfinished.save(state)
        self._saved = time.monotonic()

    def _begun(self, rate: float, state: ImitationState | None = None) -> Stepper:
        """A copy of the pruned network as it was given, all of whose weights learn; it goes on where a state is."""
        network = copy.deepcopy(self._pruned).eval()
        for parameter in network.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        optimizer = relative_rates(network, rate, self._device)  # to the weights at the start
        if state is not None and state.weights:
            network.load_state_dict(state.weights)
        return Stepper(self._fabric, network, optimizer, state.momenta if state else {}, placed=True)

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
        self._step(stepper, next(batches)(), 0, 1)  # the first takes longer
        start = time.monotonic()
        self._step(stepper, next(batches)(), 0, 1)
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

    def _shuffled(self) -> Iterator[Callable[[], ExampleInputs]]:
        """What loads the batches, for ever, each pass in another order."""
        for number in itertools.count():
            order = [*self._batches]
            random.Random(mix(self._effort.seed, number)).shuffle(order)
            yield from order

    def _moved(self, inputs: ExampleInputs) -> ExampleInputs:
        return changed(inputs, lambda tensor: tensor.to(self._device))
