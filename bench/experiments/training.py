"""What recovery saves in training: accuracy against training FLOPs, for a plainly pruned start and recovered ones.

``python bench/experiments/training.py --data FOLDER --out FILE --accelerator cuda``, where FOLDER holds the checkpoints
and images that the tests marked ``real`` use. ResNet-56 is pruned to half of its MACs three ways, see
``networks/training.py``, and each start is trained with distillation from the dense network on the 4,000 CIFAR-10
images of the task, by the code of ``pruneport finetune``, its output layer kept. What is reported is measured after the
last step, on all 2,000 test images, and so is each start before any training.

Each point is a training of its own, whose learning rate rises and falls within its own budget: a point in the middle
of a longer one would have a rate that is still high. Every start has the same grid of learning rates, and takes its own
best at each number of epochs in ``--tuned``; other budgets take that of the nearest below. It is chosen on a fifth of
the training images, left out of these trainings, that no calibration has seen; what is reported trains on all of them,
and no test image plays a part. What the choice costs is in no point. The other defaults were chosen on such images too,
with ResNet-20 and 2,000 images, 4 epochs at 0.001: a weight of 20 for the teacher over 5 and 1, and no augmentation
over crop-flip, for the plain start and the recovered one alike.

Training FLOPs are counted by ``finetune``: forward and backward, and the teacher's forward. Those of an imitation are
counted alike and given beside them; scoring and least squares are given in seconds. The same command goes on where it
was stopped, within a training, too: what it needs lies beside FILE in a folder ``STEM-runs``, rows measured already
are not measured again. ``--epochs 0`` makes the starts alone.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pruneport.bench.devices import describe_device, latency_versions
from pruneport.bench.experiments.accuracy import CASES, count_right
from pruneport.bench.experiments.networks.training import STARTS, Asked, make_start
from pruneport.bench.experiments.plots.training import curves, draw_training, interval, needed
from pruneport.bench.options import ProviderName
from pruneport.compress.devices import find_device
from pruneport.compress.finetune.state import TrainState, read_state, write_state
from pruneport.compress.finetune.training import Job, train
from pruneport.compress.options import TrainOptions
from pruneport.compress.surgery.rebuild import rebuild_network
from pruneport.errors import InputError, TrainingError
from pruneport.files import write_whole
from pruneport.models.images.images import list_folder
from pruneport.models.images.tasks import Task, open_task
from pruneport.models.source import build_dense
from pruneport.sequences import evenly

__all__ = ["main"]

_TASK = "data/tasks/cifar10"
_SETTINGS = (  # rows of others are in another file
    *("network", "kept", "images", "batch_size", "optimizer", "rates", "tuned"),
    *("distill", "augment", "precision", "recovery_steps"),
)
_LEFT_OUT = 5  # one in so many training images chooses the learning rate
_SAVE_EVERY_S = 20
_WORKERS = 8  # processes that decode, beside a GPU


def main() -> None:
    """Train, print and write JSON after every run, so that an interrupted one keeps what it has."""
    arguments = _arguments()
    end = time.monotonic() + 60 * arguments.minutes
    experiment = _Experiment(arguments)
    for start in arguments.starts:
        experiment.measure_start(start)
    wanted = [
        (start, epochs, seed)
        for seed in arguments.seeds
        for epochs in sorted({each for each in arguments.epochs if each})
        for start in arguments.starts
    ]
    for start, epochs, seed in wanted:
        if experiment.has(start, epochs, seed):
            continue
        for rate in experiment.rates_to_try(start, epochs):
            if time.monotonic() > end:
                break
            experiment.try_rate(start, epochs, rate)
        if time.monotonic() > end:
            print(f"{arguments.minutes:g} minutes are over; give the same command again to go on", flush=True)
            break
        experiment.measure(start, epochs, seed)
    experiment.draw()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="holds weights/ and data/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--network", choices=[name for name in CASES if CASES[name].shape[1] == 32], default="resnet56")
    parser.add_argument("--kept", type=float, default=0.5, help="share of the MACs")
    parser.add_argument("--starts", nargs="+", choices=list(STARTS), default=list(STARTS))
    parser.add_argument("--epochs", nargs="+", type=float, default=[0.5, 1, 2, 4, 8, 16, 32], help="one training each")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="order and augment the images")
    parser.add_argument("--rates", nargs="+", type=float, default=[1e-4, 3e-4, 1e-3, 3e-3], help="the grid")
    parser.add_argument("--tuned", nargs="+", type=float, default=[1, 4], help="epochs at which a rate is chosen")
    parser.add_argument("--reach", nargs="+", type=float, default=[0.88, 0.9, 0.91, 0.915, 0.92, 0.925, 0.93])
    parser.add_argument("--distill", type=float, default=20.0, help="weight of the teacher beside the labels")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--optimizer", choices=["adamw", "sgd"], default=TrainOptions.optimizer)
    parser.add_argument("--augment", choices=["none", "crop", "crop-flip"], default="none")
    parser.add_argument("--precision", choices=["auto", "32", "bf16"], default="32", help="the network is small")
    parser.add_argument("--recovery-steps", type=int, default=600, help="of the imitation")
    parser.add_argument("--images", type=int, help="train on so many, to try the script")
    parser.add_argument("--accelerator", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--workers", type=int, help="processes that decode; as many as there are cores on a GPU, to 8")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which no training is begun")
    return parser.parse_args()


class _Experiment:
    """Everything measured so far, and what measures more."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._given = arguments
        self._folder = arguments.out.absolute().with_name(f"{arguments.out.stem}-runs")
        case = CASES[arguments.network]
        options = TrainOptions(task=arguments.data / _TASK, mean=case.mean, std=case.std)
        task = open_task(options.task, options, case.shape)
        if arguments.images is not None:
            count = min(arguments.images, len(task.train))
            task = replace(task, train=task.train.part(evenly(range(len(task.train)), count)))
        self._task, self._tuning = task, _tuning(task, case.calibration)
        self._asked = Asked(
            case=case,
            data=arguments.data,
            kept=arguments.kept,
            calibration=task.train.folder,
            recovery_steps=arguments.recovery_steps,
            accelerator=arguments.accelerator,
        )
        self._device = find_device(arguments.accelerator)
        self._states: dict[str, TrainState] = {}
        self._content = _read(arguments.out, {name: getattr(arguments, name) for name in _SETTINGS})

    def has(self, start: str, epochs: float, seed: int) -> bool:
        """Whether this row is in the file."""
        return any((row["start"], row["epochs"], row["seed"]) == (start, epochs, seed) for row in self._content["rows"])

    def measure_start(self, name: str) -> None:
        """Make a start, or read it, and count what it gets right without any training."""
        print(f"{name}: pruning and recovering", flush=True)
        state = make_start(name, self._asked, self._task, self._folder / f"{name}.start")
        self._states[name], self._content["starts"][name] = state, state.config
        batches = [(inputs, labels) for inputs, labels in self._task.test.batches(100) if labels is not None]
        count = len(self._task.test)
        if "dense_top1" not in self._content:
            dense = build_dense(replace(state.plan.source, output_layers={}))
            self._content["dense_top1"] = round(count_right(dense, batches) / count, 4)
        if not self.has(name, 0, 0):
            right = count_right(rebuild_network(state.plan, state.weights), batches)
            self._add(name, 0, 0, right / count, {})

    def rates_to_try(self, start: str, epochs: float) -> list[float]:
        """Learning rates that must be tried before a training of so many epochs can have one."""
        tried = self._tried(start, self._tuned_at(epochs))
        return [rate for rate in self._given.rates if rate not in tried]

    def try_rate(self, start: str, epochs: float, rate: float) -> None:
        """Train with a learning rate, without the images that choose it, and note what it gets right of them."""
        epochs = self._tuned_at(epochs)
        file = self._folder / f"{start}-{epochs:g}-rate-{rate:g}.training"
        try:
            top1 = 1 - self._trained(start, self._tuning, epochs, rate, self._given.seeds[0], file).events[-1].error
        except TrainingError as error:  # it diverged
            print(error, flush=True)
            top1 = 0.0
        row = {"start": start, "epochs": epochs, "learning_rate": rate, "top1": round(top1, 4)}
        self._content["rates"].append(row | {"images": len(self._tuning.test)})
        print(json.dumps(row), flush=True)
        self._write(file)

    def measure(self, start: str, epochs: float, seed: int) -> None:
        """Train on all training images with the rate that was chosen, and add a row."""
        tried = self._tried(start, self._tuned_at(epochs))
        rate = max(self._given.rates, key=lambda rate: tried[rate])
        file = self._folder / f"{start}-{epochs:g}-{seed}.training"
        done = self._trained(start, self._task, epochs, rate, seed, file)
        event = done.events[-1]
        took = {
            "learning_rate": rate,
            "steps": done.step,
            "flops": done.flops,
            "loss": round(event.loss, 4),
            "train_s": round(done.seconds, 1),
            "device": torch.cuda.get_device_name() if self._device.type == "cuda" else "cpu",
        }
        self._add(start, epochs, seed, 1 - event.error, took, file)

    def _tuned_at(self, epochs: float) -> float:
        """The epochs at which the rate of a training is chosen: the nearest below, or else the fewest."""
        return float(max((each for each in self._given.tuned if each <= epochs), default=min(self._given.tuned)))

    def _tried(self, start: str, epochs: float) -> dict[float, float]:
        """Learning rates and what they got right of the images that were left out."""
        rows = [row for row in self._content["rates"] if (row["start"], row["epochs"]) == (start, epochs)]
        return {row["learning_rate"]: row["top1"] for row in rows}

    def _trained(self, start: str, task: Task, epochs: float, rate: float, seed: int, file: Path) -> TrainState:
        """Train from a start, or go on with the state in the file."""
        given = self._given
        config = {"start": start, "epochs": epochs, "learning_rate": rate, "seed": seed, "task": task.name}
        if not (file.is_file() and read_state(file).config == config):
            write_state(file, replace(self._states[start], config=config))
        workers = given.workers
        if workers is None:
            workers = min(_WORKERS, len(os.sched_getaffinity(0))) if self._device.type == "cuda" else 0
        options = TrainOptions(
            task=given.data / _TASK,
            epochs=epochs,
            batch_size=given.batch_size,
            optimizer=given.optimizer,
            learning_rate=rate,
            augment=given.augment,
            distill=given.distill,
            evaluations=0,  # the end is measured anyhow
            precision=given.precision,
            accelerator=given.accelerator,
            workers=workers,
            save_every=_SAVE_EVERY_S,
            keep_head=True,
        )
        print(f"{start}: {epochs:g} epochs at {rate:g}", flush=True)
        return train(Job(state=file, task=task, options=options, seed=seed))

    def _add(
        self, start: str, epochs: float, seed: int, top1: float, took: Mapping[str, Any], done: Path | None = None
    ) -> None:
        images = len(self._task.test)
        row = {
            "start": start,
            "epochs": epochs,
            "seed": seed,
            "top1": round(top1, 4),
            **interval(top1, images),
            "test_images": images,
            "train_images": len(self._task.train),
            "flops": 0.0,
            **took,
        }
        self._content["rows"].append(row)
        print(json.dumps(row), flush=True)
        self._write(done)

    def _write(self, done: Path | None) -> None:
        """Write the file; then a training that is done needs its state no more."""
        content = self._content
        content["needed"] = needed(curves(content["rows"]), self._spent(), self._given.reach)
        provider: ProviderName = "cuda" if self._device.type == "cuda" else "cpu"
        content |= {"versions": latency_versions(), "device": describe_device(provider, self._device.index or 0)}
        write_whole(self._given.out, json.dumps(content, indent=1) + "\n")
        if done is not None:
            done.unlink()

    def draw(self) -> None:
        """Write the plot."""
        path, content = self._given.out.with_suffix(".svg"), self._content
        draw_training(curves(content["rows"]), content["dense_top1"], path, self._spent())

    def _spent(self) -> dict[str, float]:
        """FLOPs of each start's imitation."""
        return {start: took["imitation_flops"] for start, took in self._content["starts"].items()}


def _tuning(task: Task, calibration: int) -> Task:
    """Training images alone: a fifth, none of them a calibration image, tests what is trained on the others."""
    train = task.train
    calibrated = set(list_folder(train.folder, train.shape, train.preprocessing, calibration).paths)
    spare = [row for row, path in enumerate(train.paths) if path not in calibrated]
    count = min(len(train) // _LEFT_OUT, len(spare))
    left_out = evenly(spare, count)
    others = sorted({*range(len(train))}.difference(left_out))
    return Task(name=f"{task.name}, tuning", train=train.part(others), test=train.part(left_out))


def _read(out: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the file has, or an empty one of these settings.

    Raises:
        InputError: Its rows were measured with other settings.
    """
    if not out.is_file():
        return {"settings": dict(settings), "starts": {}, "rates": [], "rows": []}
    content: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    if content["settings"] != settings:
        raise InputError(f"{out} was measured with other settings, {content['settings']}; choose another `--out`.")
    return content


if __name__ == "__main__":
    main()
