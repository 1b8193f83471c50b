"""Accuracy kept without labels: network x criterion x ranking x recovery x MACs kept, on real checkpoints.

``python bench/experiments/accuracy.py --data FOLDER --out bench/results/accuracy.json``, where FOLDER holds the
checkpoints and images that the tests marked ``real`` use. Calibration images are training images (CIFAR-10), or 256 of
the 1000 ImageNet samples, whose others are tested on. Only the criteria with a loss read labels, and only of
calibration images. A row that is in the file already, of as many test images, is not measured again. With
``--accelerator`` all but the choice of the filters runs on a GPU, in float32.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pruneport.bench.devices import describe_device, latency_versions
from pruneport.bench.experiments.plots.accuracy import draw_accuracy
from pruneport.bench.options import ProviderName
from pruneport.compress.activations.calibration import BATCH, Calibration, in_memory
from pruneport.compress.activations.memory import freed_memory_kept
from pruneport.compress.activations.synthetic import enough, synthesise
from pruneport.compress.assessment import assess
from pruneport.compress.devices import CPU, find_device, in_full_precision, loaded_on, network_on
from pruneport.compress.importance.criteria import CRITERIA
from pruneport.compress.options import PruneOptions
from pruneport.compress.prune import prune
from pruneport.compress.records import Calibrated, Imitated
from pruneport.compress.recovery.imitate import Effort
from pruneport.compress.recovery.recover import recover
from pruneport.export.card.intervals import share_interval
from pruneport.files import write_whole
from pruneport.models.images.images import ImageSet, open_images
from pruneport.models.options import ImageOptions, SourceOptions
from pruneport.models.source import open_source
from pruneport.sequences import evenly

__all__ = ["CASES", "Case", "count_top1", "main", "read_images"]

_NETWORKS = Path(__file__).resolve().parents[2] / "tests" / "real" / "networks.py"
_KEYS = ("network", "target", "inputs", "criterion", "ranking", "recovery", "test_images")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network, its checkpoint and the shares of its compute to keep."""

    source: str
    weights: str
    shape: tuple[int, int, int]
    round_to: int
    kept: tuple[float, ...]
    calibration: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


CASES = {
    "resnet20": Case(
        source=f"{_NETWORKS}:resnet20",
        weights="cifar10_resnet20.th",
        shape=(3, 32, 32),
        round_to=1,
        kept=(0.69, 0.51),
        calibration=512,
    ),
    "resnet56": Case(
        source=f"{_NETWORKS}:resnet56",
        weights="cifar10_resnet56.th",
        shape=(3, 32, 32),
        round_to=1,
        kept=(0.78, 0.59, 0.5),
        calibration=512,
    ),
    "resnet50_v1": Case(
        source=f"{_NETWORKS}:resnet50_v1",
        weights="resnet50_v1_imagenet.pth",
        shape=(3, 224, 224),
        round_to=8,
        kept=(0.87, 0.75, 0.63, 0.53),
        calibration=256,
    ),
    "mobilenet_v2": Case(
        source="torchvision:mobilenet_v2",
        weights="mobilenet_v2-b0353104.pth",
        shape=(3, 224, 224),
        round_to=8,
        kept=(0.87, 0.75, 0.63),
        calibration=256,
    ),
    "efficientnet_lite0": Case(
        source=f"{_NETWORKS}:efficientnet_lite0",
        weights="efficientnet_lite0_imagenet.pth",
        shape=(3, 224, 224),
        round_to=8,
        kept=(0.87, 0.75),
        calibration=256,
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
    ),
}
_Recipe = tuple[str, str, str, Sequence[str]]  # inputs, criterion, ranking, recoveries
_RECIPES: dict[str, list[_Recipe]] = {
    "plain": [("images", "l1", "uniform", ("none", "bn", "reconstruct"))],
    "best": [("images", "block-hessian", "sensitivity", ("none", "reconstruct", "imitate"))],
    "data-free": [
        ("synthetic", "block-hessian", "sensitivity", ("data-free", "imitate")),
    ],
    "steps": [
        ("synthetic", "l1", "uniform", ("data-free",)),
        ("images", "block-hessian", "uniform", ("reconstruct",)),
        ("images", "l1", "sensitivity", ("reconstruct",)),
    ],
    "criteria": [
        ("images", criterion, ranking, ("none", "bn", "reconstruct"))
        for criterion in CRITERIA
        for ranking in ("uniform", "global", "isomorphic")
    ],
}


def main() -> None:
    """Measure, print and write JSON after every row, so that an interrupted run keeps what it has."""
    parser = argparse.ArgumentParser(description="Measure accuracy after pruning without training.")
    parser.add_argument("--data", type=Path, required=True, help="holds weights/ and data/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--networks", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--recipes", nargs="+", choices=list(_RECIPES), default=["plain", "best", "data-free"])
    parser.add_argument("--kept", nargs="+", type=float, help="only these shares of the MACs")
    parser.add_argument("--recoveries", nargs="+", help="only these")
    parser.add_argument("--recovery-minutes", type=float, help="for imitate")
    parser.add_argument("--recovery-steps", type=int, help="for imitate, in the place of minutes")
    parser.add_argument("--accelerator", default="auto", help="as of compress: auto, cpu, cuda")
    arguments = parser.parse_args()
    effort, device = (
        Effort(minutes=arguments.recovery_minutes, steps=arguments.recovery_steps),
        find_device(arguments.accelerator),
    )
    rows: list[dict[str, Any]] = []
    if arguments.out.is_file():
        rows = json.loads(arguments.out.read_text(encoding="utf-8"))["rows"]
    recipes = [
        (inputs, criterion, ranking, [one for one in recoveries if one in (arguments.recoveries or recoveries)])
        for name in arguments.recipes
        for inputs, criterion, ranking, recoveries in _RECIPES[name]
    ]
    for name in arguments.networks:
        for row in _measure(name, CASES[name], recipes, arguments.kept, arguments.data, rows, effort, device):
            rows = [other for other in rows if _key(other) != _key(row)] + [row]
            print(json.dumps(row), flush=True)
            provider: ProviderName = "cuda" if device.type == "cuda" else "cpu"
            content = {
                "rows": rows,
                "versions": latency_versions(),
                "device": describe_device(provider, device.index or 0),
            }
            write_whole(arguments.out, json.dumps(content, indent=1) + "\n")
    draw_accuracy(rows, arguments.out.with_suffix(".svg"))


def _measure(
    name: str,
    case: Case,
    recipes: Sequence[_Recipe],
    only: Sequence[float] | None,
    data: Path,
    rows: Sequence[dict[str, Any]],
    effort: Effort,
    device: torch.device,
) -> Iterator[dict[str, Any]]:
    """Yield one row for every target and recovery that is not measured yet."""
    options = SourceOptions(source=case.source, checkpoint=data / "weights" / case.weights, input_shape=case.shape)
    dense, source = open_source(options)
    test, calibrations = read_images(case, data)
    device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    images = sum(len(labels) for _, labels in test)
    done = {_key(row) for row in rows}
    dense_top1: float | None = None
    for inputs, criterion, ranking, recoveries in recipes:
        targets = [kept for kept in case.kept if only is None or kept in only]
        wanted = [
            (kept, recovery)
            for kept in targets
            for recovery in recoveries
            if (name, kept, inputs, criterion, ranking, recovery, images) not in done
        ]
        if not wanted:
            continue
        dense_top1 = dense_top1 or count_top1(dense, test, device)
        if inputs not in calibrations:
            start = time.monotonic()
            with in_full_precision():
                made = synthesise(dense, case.shape, enough(case.shape), source.seed, device=device)
            calibrations[inputs] = made
            print(f"{name}: {made.record.count} synthetic inputs in {time.monotonic() - start:.0f} s", flush=True)
        calibration, start = calibrations[inputs], time.monotonic()
        asked = PruneOptions(flops=0.5, round_to=case.round_to, criterion=criterion, ranking=ranking)  # type: ignore[arg-type]
        with in_full_precision(), freed_memory_kept():
            assessment = assess(dense, source, asked, calibration, device=device)
        assessing = time.monotonic() - start
        for kept, recovery in wanted:
            pruned = prune(dense, source, replace(asked, flops=kept), assessment=assessment)
            network, start = pruned.network, time.monotonic()
            did: Imitated | None = None
            if recovery != "none":
                effort = replace(effort, seed=source.seed)
                groups = pruned.plan.groups
                with in_full_precision(), freed_memory_kept():
                    recovered = recover(
                        recovery,
                        dense,
                        network,
                        groups,
                        calibration.batches,
                        effort=effort,
                        device=device,
                        synthetic=inputs == "synthetic",
                    )
                did = recovered.imitation
            seconds = time.monotonic() - start
            right = count_right(network, test, device)
            interval = share_interval(right, images)
            yield {
                "network": name,
                "target": kept,
                "macs_kept": round(pruned.plan.macs_kept, 4),
                "criterion": criterion,
                "ranking": ranking,
                "scope": "filters",
                "recovery": recovery,
                "inputs": inputs,
                "input_count": calibration.record.count,
                "test_images": images,
                "dense_top1": round(dense_top1, 4),
                "top1": round(right / images, 4),
                "top1_low": round(interval.low, 4),
                "top1_high": round(interval.high, 4),
                "imitation": None if did is None else asdict(did),
                "assess_s": round(assessing, 1),
                "recovery_s": round(seconds, 1),
                "computed_on": device_name,
                "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }


def read_images(case: Case, data: Path) -> tuple[list[tuple[Tensor, Tensor]], dict[str, Calibration]]:
    """Read the test images with their labels, and the calibration images."""
    if case.shape[1] == 32:
        tests = _opened(ImageOptions(images=data / "data/tasks/cifar10/test"), case)
        given = _opened(ImageOptions(images=data / "data/tasks/cifar10/train", images_limit=case.calibration), case)
    else:  # one image a class
        both = _opened(ImageOptions(images=data / "data/imagenet-samples", resize=256), case)
        calibrating = calibrating_classes(len(both), case.calibration)
        tests = both.part(sorted({*range(len(both))}.difference(calibrating)))
        given = both.part(calibrating)
    test = [
        (inputs.contiguous(memory_format=torch.channels_last), labels)
        for inputs, labels in tests.batches(50)
        if labels is not None
    ]
    loaded = [next(part.batches(len(part))) for part in given.spread(BATCH)]
    calibration = Calibration(
        batches=in_memory([inputs for inputs, _ in loaded]),
        labels=tuple(labels for _, labels in loaded if labels is not None),
        classes=len(given.classes),
        record=Calibrated(inputs="images", count=len(given)),
    )
    return test, {"images": calibration}


def calibrating_classes(classes: int, count: int) -> list[int]:
    """So many of classes 1, 3, 5, …, taken evenly; all others are tested, of which every fourth never calibrates.

    In sorted order ImageNet's first 398 classes are animals: the first 256 of these would hardly show anything else.
    """
    return evenly(range(1, classes, 2), count)


def _opened(options: ImageOptions, case: Case) -> ImageSet:
    """Open an image folder at the network's input shape."""
    images = open_images(replace(options, mean=case.mean, std=case.std), case.shape)
    assert images is not None
    return images


@torch.inference_mode()
def count_right(network: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], device: torch.device = CPU) -> int:
    """How many images have their label as the largest output."""
    network = network_on(device, network)
    shown = loaded_on(device, in_memory([inputs for inputs, _ in batches]))
    with in_full_precision():
        return sum(
            int((network(load()).argmax(1).cpu() == labels).sum())
            for load, (_, labels) in zip(shown, batches, strict=True)
        )


def count_top1(network: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], device: torch.device = CPU) -> float:
    """The same as a share of the images."""
    return count_right(network, batches, device) / sum(len(labels) for _, labels in batches)


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What tells a row from others of its file."""
    return tuple(row[key] for key in _KEYS)


if __name__ == "__main__":
    main()
