"""Fine-tuning: a network trained on a task, every step's compute counted, stopped and resumed bit for bit.

Each step follows from the seed, its number and the state before it. So a state file is all that a stopped run needs,
and a run that starts begins from one, too. Lightning Fabric places it on one CPU or several GPUs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import ProcessRaisedException

from pruneport.compress.activations.memory import ran_out_of_memory
from pruneport.compress.allocation.cost import count_cost
from pruneport.compress.finetune.checks import check_representation, check_training
from pruneport.compress.finetune.deterministic import deterministic
from pruneport.compress.finetune.distill import Teacher
from pruneport.compress.finetune.optimizers import make_optimizer
from pruneport.compress.finetune.schedule import average_loss, cut_by_the_first, is_due
from pruneport.compress.finetune.state import (
    Event,
    TrainState,
    optimizer_tensors,
    read_state,
    write_state,
)
from pruneport.compress.finetune.steps import Stepper, open_fabric
from pruneport.compress.hooks import inputs_recorded
from pruneport.compress.options import PruneOptions, TrainOptions
from pruneport.compress.surgery.rebuild import rebuild_network
from pruneport.errors import PruningError, TrainingError
from pruneport.models.factories import load_factory
from pruneport.models.images.tasks import Pictures, Task, images_a_step, mix, test_batches, train_batches
from pruneport.models.outputs import tensor_leaves
from pruneport.progress import Progress, Step, silent

__all__ = ["Job", "train", "training_flops"]

_EPOCHS = 10.0
_SAY_EVERY_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training, as each of its processes gets it.

    Attributes:
        state: The state file that it begins with, and goes on writing; its plan records the output layers.
        task: The images.
        options: How it is trained.
        pruning: What the schedule cuts; None where nothing is cut.
        seed: Orders and augments the images, and drops out.
        factory: Builds the architecture in place of the source's, as path/to/file.py:factory.
    """

    state: Path
    task: Task
    options: TrainOptions
    pruning: PruneOptions | None = None
    seed: int = 0
    factory: str | None = None


def training_flops(macs: int, teacher_macs: int = 0) -> float:
    """FLOPs of one image: 2 a multiply-accumulate, forward once and backward twice that; a teacher forward only."""
    return 2.0 * (3 * macs + teacher_macs)


def train(job: Job, progress: Progress = silent) -> TrainState:
    """Train from the state on disk to the end.

    Returns:
        The last state, which is also on disk.

    Raises:
        TrainingError: The budget is below one step, the loss is not finite, or the accelerator's memory does not hold a
            step; the state on disk is the last saved.
    """
    options = job.options
    check_training(options)
    fabric = open_fabric(options.accelerator, options.devices, options.precision)
    try:
        if options.devices == 1:
            with deterministic(fabric.device, progress):
                _Training(fabric, job, progress).run()
        elif (failed := fabric.launch(partial(_train, job=job))) is not None:
            raise TrainingError(failed)
    except (RuntimeError, ProcessRaisedException) as error:
        if not ran_out_of_memory(error):
            raise
        raise TrainingError(
            f"the accelerator's memory does not hold a step of {options.batch_size // options.devices} images. Lower "
            "`batch_size`, train on more `devices`, or free some of it."
        ) from error
    return read_state(job.state)


def _train(fabric: Any, job: Job) -> str | None:
    """One of several processes; says what went wrong where it went wrong in all of them alike."""
    try:
        with deterministic(fabric.device, silent):
            _Training(fabric, job, silent).run()
    except TrainingError as error:
        return str(error)
    return None


class _Training:
    """One training in one of its processes: the network, the optimizer and the state that is saved."""

    def __init__(self, fabric: Any, job: Job, progress: Progress) -> None:
        self._fabric, self._job, self._options, self._progress = fabric, job, job.options, progress
        self._state = read_state(job.state)
        self._output_layers = tuple(self._state.plan.source.output_layers)
        self._factory = load_factory(job.factory) if job.factory else None
        self._images = images_a_step(job.task.train, self._options.batch_size)
        self._test = Pictures(job.task.test)
        self._teacher: Teacher | None = None
        if self._options.distill:
            check_representation(self._state.plan, job.pruning)
            self._teacher = Teacher(self._state.plan.source, self._output_layers[0], self._factory, fabric.device)
        self._said = -math.inf
        self._set_up(rebuild_network(self._state.plan, self._state.weights, self._factory), self._state.momenta)

    def run(self) -> None:
        """Step until the end, which is measured and saved."""
        state, options = self._state, self._options
        batches: Iterator[Any] = iter(
            train_batches(
                Pictures(self._job.task.train, options.augment),
                options.batch_size,
                self._job.seed,
                state.step,
                self._fabric.global_rank,
                self._fabric.world_size,
                options.workers,
            )
        )
        if not state.step and self._share(1) > 1 + 1e-9:
            raise TrainingError(
                f"a step of {self._images} images costs {self._step_flops:.2e} FLOPs, which is more than the budget of "
                f"{options.budget:.2e}; give a larger `budget` or a smaller `batch_size`."
            )
        saved = time.monotonic()
        while self._share(1) <= 1 + 1e-9:
            if self._job.pruning is not None and is_due(state, self._share(), options.warmup, options.cuts):
                self._cut()
            self._step(*next(batches))
            if math.floor(self._share() * options.evaluations + 1e-9) > len(state.events):
                self._measure()
            if time.monotonic() - saved >= options.save_every:
                self._save()
                saved = time.monotonic()
        if not state.events or state.events[-1].step != state.step:
            self._measure()
        self._save()

    def _set_up(self, network: nn.Module, momenta: dict[str, Tensor]) -> None:
        """Wrap the network and make its optimizer anew; after a cut, too."""
        self._state.plan = replace(self._state.plan, pruned=count_cost(network.eval(), self._state.plan.source.takes))
        teacher_macs = self._teacher.macs if self._teacher else 0
        self._step_flops = self._images * training_flops(self._state.plan.pruned.macs, teacher_macs)
        optimizer = make_optimizer(network, self._options, self._output_layers, self._fabric.device)
        self._stepper = Stepper(self._fabric, network.train(), optimizer, momenta)

    def _share(self, ahead: float = 0) -> float:
        """Share of the training that is done, or would be some steps ahead."""
        state, options = self._state, self._options
        if options.budget is not None:
            return (state.flops + ahead * self._step_flops) / options.budget
        each = len(self._job.task.train) // self._images
        steps = options.steps or max(1, round((_EPOCHS if options.epochs is None else options.epochs) * each))
        return (state.step + ahead) / steps

    def _step(self, inputs: Tensor, labels: Tensor) -> None:
        """One step of the optimizer."""
        state, start = self._state, time.monotonic()
        device = self._fabric.device
        inputs = inputs.to(device, memory_format=torch.channels_last)

        def loss_of(model: nn.Module) -> Tensor:
            with inputs_recorded(self._network, self._output_layers[0]) as seen:
                outputs = tensor_leaves(model(inputs))[0]
            loss = nn.functional.cross_entropy(outputs.float(), labels.to(device))
            if self._teacher is not None:
                loss = loss + self._options.distill * self._teacher.distance(inputs, seen[-1])
            return loss

        seed = mix(self._job.seed, state.step)
        value = self._stepper.step(loss_of, self._share(0.5), self._options.warmup, seed)
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss is {value} at step {state.step}; lower `learning_rate` (now "
                f"{self._stepper.optimizer.param_groups[0]['highest']:g}) or lengthen `warmup`."
            )
        state.step += 1
        state.flops += self._step_flops
        state.losses = [state.losses[0] + value, state.losses[1] + 1]
        state.average = average_loss(state, value)
        state.seconds += time.monotonic() - start
        if time.monotonic() - self._said > _SAY_EVERY_S:
            self._said = time.monotonic()
            share = self._share()
            said = f"step {state.step}: {share:.0%} of the training, loss {state.average:.3f}"
            self._progress(Step(said, share, 1))

    @property
    def _network(self) -> nn.Module:
        return self._stepper.network

    def _measure(self) -> None:
        """Add an event: the loss since the last one, and the error on the test images."""
        state = self._state
        total, count = state.losses
        state.events.append(
            Event(
                step=state.step,
                flops=state.flops,
                error=self._error(),
                loss=total / max(1, count),
                macs=state.plan.pruned.macs,
                seconds=state.seconds,
            )
        )
        state.losses = [0.0, 0]

    @torch.no_grad()
    def _error(self) -> float:
        """Share of the test images that are classified wrong."""
        self._progress(f"step {self._state.step}: measuring accuracy")
        self._stepper.model.eval()
        wrong = sum(
            int((tensor_leaves(self._stepper.model(inputs.to(self._fabric.device)))[0].argmax(1).cpu() != labels).sum())
            for inputs, labels in test_batches(self._test)
        )
        self._stepper.model.train()
        return wrong / len(self._test.images)

    def _cut(self) -> None:
        """Prune once, by as much as makes equal cuts of what is left to the schedule's target."""
        state, pruning = self._state, self._job.pruning
        assert pruning is not None
        assert pruning.flops is not None
        macs_kept = state.plan.macs_kept
        if macs_kept <= pruning.flops:  # a coarse step got there before its turn
            state.cuts = self._options.cuts
            return
        share = (pruning.flops / macs_kept) ** (1 / (self._options.cuts - state.cuts))
        state.level, state.cuts, state.cut_step = state.average, state.cuts + 1, state.step
        self._take()
        images = self._job.task.train
        made = cut_by_the_first(
            self._fabric, self._network, state, pruning, share, images, self._factory, self._progress
        )
        if isinstance(made, Exception):
            if state.cuts == 1 and isinstance(made, PruningError):
                raise made  # nothing could be pruned from the start
            note = (
                f"the schedule ended at {macs_kept:.3f} of the dense multiply-accumulates, short of "
                f"`flops={pruning.flops:g}`: no widths are left for a cut to {share:.3f} of that. A smaller "
                "`round_to`, a larger `max_pruning_ratio` or `scope=channels` reaches lower."
            )
            self._progress(note)
            state.plan, state.cuts = replace(state.plan, note=note), self._options.cuts
            self._network.to(self._fabric.device)
            return
        network, state.plan, momenta = made
        self._set_up(network, momenta)

    def _take(self) -> None:
        """Bring weights and momenta into the state."""
        self._state.weights = {name: value.detach() for name, value in self._network.state_dict().items()}
        self._state.momenta = optimizer_tensors(self._network, self._stepper.optimizer)
        self._state.momenta = {name: value.detach().cpu() for name, value in self._state.momenta.items()}

    def _save(self) -> None:
        """Write the state, by one of the processes."""
        self._take()
        if self._fabric.global_rank == 0:
            write_state(self._job.state, self._state)
        self._fabric.barrier()
