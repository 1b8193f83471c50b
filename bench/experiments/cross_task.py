"""Does pruning on one task serve the others? The second paper's claim (arXiv 2509.24066), for whole filters.

An ImageNet network is pruned with the images and labels of one task, its features are frozen, and a ridge classifier
on top of them is fitted and tested on every task: the task itself, the others, and against pruning without data.

``python bench/experiments/cross_task.py --data FOLDER --out bench/results/cross_task.json``, where FOLDER is the one of
``bench/experiments/accuracy.py``. A row that is in the file already is not measured again.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.linear_model import RidgeClassifierCV
from torch import Tensor, nn

from pruneport.bench.devices import describe_device, latency_versions
from pruneport.compress.activations.calibration import BATCH, Calibration, in_memory
from pruneport.compress.assessment import assess
from pruneport.compress.hooks import inputs_recorded
from pruneport.compress.options import PruneOptions
from pruneport.compress.prune import prune
from pruneport.compress.records import Calibrated
from pruneport.files import write_whole
from pruneport.models.images.images import open_images
from pruneport.models.options import ImageOptions, SourceOptions
from pruneport.models.parts import set_part
from pruneport.models.source import open_source

__all__ = ["main"]

_SHAPE = (3, 64, 64)
_TASKS = ("cifar10", "eurosat", "clothing", "sign-digits")
_TRAIN, _TEST, _CALIBRATION = 600, 400, 128
_RIDGES = np.logspace(-1, 5, 13)
_NETWORKS = {
    "mobilenet_v2": ("torchvision:mobilenet_v2", "mobilenet_v2-b0353104.pth", "classifier.1"),
    "resnet50_v1": (
        f"{Path(__file__).resolve().parents[2] / 'tests' / 'real' / 'networks.py'}:resnet50_v1",
        "resnet50_v1_imagenet.pth",
        "fc",
    ),
}
_CRITERIA = ("fisher", "block-hessian")  # diagonal and block Hessian
_KEYS = ("network", "kept", "criterion", "pruned_on", "seed")


@dataclass(frozen=True)
class _Task:
    """Training and test images of a task, as tensors."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    classes: int


def main() -> None:
    """Measure, print and write JSON after every row; then the plot and the summary."""
    parser = argparse.ArgumentParser(description="Prune on one task, test on the others.")
    parser.add_argument("--data", type=Path, required=True, help="holds weights/ and data/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--networks", nargs="+", choices=list(_NETWORKS), default=list(_NETWORKS))
    parser.add_argument("--kept", nargs="+", type=float, default=[0.75, 0.5, 0.35])
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if arguments.out.is_file():
        rows = json.loads(arguments.out.read_text(encoding="utf-8"))["rows"]
    done = {tuple(row[key] for key in _KEYS) for row in rows}
    tasks = {name: _open(arguments.data / "data/tasks" / name) for name in _TASKS}
    for name in arguments.networks:
        for row in _measure(name, arguments.data, tasks, arguments.kept, arguments.seeds, done):
            rows.append(row)
            print(json.dumps(row), flush=True)
            _write(arguments.out, rows)
    _write(arguments.out, rows)
    _draw(_summary(rows), arguments.out.with_suffix(".svg"))


def _write(out: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows and summary, with what they depend on."""
    content = {
        "rows": rows,
        "summary": _summary(rows),
        "setting": {"shape": _SHAPE, "train": _TRAIN, "test": _TEST, "calibration": _CALIBRATION},
        "versions": latency_versions(),
        "device": describe_device("cpu", 0),
    }
    write_whole(out, json.dumps(content, indent=1) + "\n")


def _measure(
    name: str, data: Path, tasks: dict[str, _Task], kept: Sequence[float], seeds: int, done: set[Any]
) -> Iterator[dict[str, Any]]:
    """Yield the dense network's row, then one for every share, criterion, task and seed that is not measured yet."""
    spec, weights, head = _NETWORKS[name]
    dense, source = open_source(SourceOptions(source=spec, checkpoint=data / "weights" / weights, input_shape=_SHAPE))
    key = (name, 1.0, "none", "none", 0)
    if key not in done:
        yield dict(zip(_KEYS, key, strict=True)) | {"macs_kept": 1.0, "top1": _test(dense, head, tasks)}
    ways = [("l1", "none", 0)] + [
        (criterion, task, seed) for seed in range(seeds) for criterion in _CRITERIA for task in _TASKS
    ]
    for criterion, task, seed in ways:
        wanted = [share for share in kept if (name, share, criterion, task, seed) not in done]
        if not wanted:
            continue
        network, calibration = dense, None
        if task != "none":
            network, calibration = _on_task(dense, head, tasks[task], seed)
        options = [PruneOptions(flops=share, criterion=criterion) for share in wanted]  # type: ignore[arg-type]
        assessment = assess(network, source, options[0], calibration)
        for share, asked in zip(wanted, options, strict=True):
            pruned = prune(network, source, asked, assessment=assessment)
            yield dict(zip(_KEYS, (name, share, criterion, task, seed), strict=True)) | {
                "macs_kept": round(pruned.plan.macs_kept, 4),
                "top1": _test(pruned.network, head, tasks),
            }


def _on_task(dense: nn.Module, head: str, task: _Task, seed: int) -> tuple[nn.Module, Calibration]:
    """The network with a ridge head for the task, and a random part of the task's training images and labels."""
    network = copy.deepcopy(dense)
    classifier = _ridge(_features(dense, head, task.train), task.train_labels)
    layer = nn.Linear(classifier.coef_.shape[1], task.classes)
    layer.weight.data = torch.from_numpy(classifier.coef_).float()
    layer.bias.data = torch.from_numpy(classifier.intercept_).float()
    set_part(network, head, layer)
    chosen = torch.randperm(len(task.train), generator=torch.Generator().manual_seed(seed))[:_CALIBRATION]
    return network.eval(), Calibration(
        batches=in_memory(torch.split(task.train[chosen], BATCH)),
        labels=torch.split(task.train_labels[chosen], BATCH),
        classes=task.classes,
        record=Calibrated(inputs="images", count=_CALIBRATION),
    )


def _test(network: nn.Module, head: str, tasks: dict[str, _Task]) -> dict[str, float]:
    """Top-1 of a ridge classifier on the network's features, by task."""
    found = {}
    for name, task in tasks.items():
        classifier = _ridge(_features(network, head, task.train), task.train_labels)
        right = classifier.predict(_features(network, head, task.test)) == task.test_labels.numpy()
        found[name] = round(float(right.mean()), 4)
    return found


def _ridge(features: np.ndarray, labels: Tensor) -> RidgeClassifierCV:
    """Ridge strength by leave-one-out on the training features."""
    return RidgeClassifierCV(alphas=_RIDGES).fit(features, labels.numpy())


@torch.inference_mode()
def _features(network: nn.Module, head: str, images: Tensor) -> np.ndarray:
    """What the output layer reads: (images, features)."""
    with inputs_recorded(network, head) as seen:
        for batch in torch.split(images, 100):
            network(batch.contiguous(memory_format=torch.channels_last))
    return torch.cat(seen).double().numpy()


def _open(folder: Path) -> _Task:
    """Read a task's images."""
    train, train_labels, classes = _read(folder / "train", _TRAIN)
    test, test_labels, _ = _read(folder / "test", _TEST)
    return _Task(train, train_labels, test, test_labels, classes)


def _read(folder: Path, limit: int) -> tuple[Tensor, Tensor, int]:
    """Read at most ``limit`` images of a folder: inputs, labels and the number of classes."""
    images = open_images(ImageOptions(images=folder, images_limit=limit, resize=_SHAPE[1]), _SHAPE)
    assert images is not None
    inputs, labels = next(images.batches(len(images)))
    assert labels is not None
    return inputs, labels, len(images.classes)


def _summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean top-1 over the tasks as a share of the dense network's, and the deviation of that mean over the seeds."""
    found = []
    for network in dict.fromkeys(row["network"] for row in rows):
        own = [row for row in rows if row["network"] == network]
        dense = next(row["top1"] for row in own if row["criterion"] == "none")
        for kept in sorted({row["kept"] for row in own if row["kept"] < 1}):
            for criterion in ("l1", *_CRITERIA):
                shares: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
                for row in own:
                    if (row["kept"], row["criterion"]) == (kept, criterion):
                        for task, top1 in row["top1"].items():
                            where = {"none": "none", task: "same"}.get(row["pruned_on"], "other")
                            shares[where][row["seed"]].append(top1 / dense[task])
                for where, by_seed in shares.items():
                    means = [float(np.mean(values)) for values in by_seed.values()]
                    found.append(
                        {
                            "network": network,
                            "kept": kept,
                            "criterion": criterion,
                            "tested_on": where,
                            "of_dense": round(float(np.mean(means)), 4),
                            "seeds": len(means),
                            "deviation": round(float(np.std(means, ddof=1)), 4) if len(means) > 1 else None,
                        }
                    )
    return found


def _draw(summary: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw top-1, as a share of the dense network's, against the share of the compute kept."""
    styles = {"same": "-", "other": "--", "none": ":"}
    words = {"same": "pruned on the task", "other": "on another", "none": "no data"}
    colours = {"l1": "#1f2a33", "fisher": "#c2571a", "block-hessian": "#14688c"}
    networks = list(dict.fromkeys(entry["network"] for entry in summary))
    figure = Figure(figsize=(max(7.0, 4.2 * len(networks)), 3.8), layout="constrained")
    for number, network in enumerate(networks, start=1):
        axes = figure.add_subplot(1, len(networks), number)
        for criterion, colour in colours.items():
            for where, style in styles.items():
                line = [
                    (entry["kept"], entry["of_dense"], entry["deviation"] or 0)
                    for entry in summary
                    if (entry["network"], entry["criterion"], entry["tested_on"]) == (network, criterion, where)
                ]
                if line:
                    kept, share, deviation = zip(*line, strict=True)
                    label = f"{criterion}, {words[where]}"
                    axes.errorbar(kept, share, deviation, color=colour, linestyle=style, capsize=2, label=label)
        axes.set(title=network, xlabel="multiply-accumulates kept", ylabel="top-1 as a share of dense")
        axes.grid(color="#dde3e7", linewidth=0.6)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.savefig(path)


if __name__ == "__main__":
    main()
