"""Accuracy kept without training: network x MACs kept x recovery, on real checkpoints and images.

``python bench/accuracy.py --data FOLDER --out bench/results/accuracy.json``, where FOLDER holds the checkpoints and
images that the tests marked ``real`` use. Calibration images are training images (CIFAR-10), or the half of the
ImageNet samples that is not tested on; labels of calibration images are never read.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pruneport.bench.devices import describe_device, library_versions
from pruneport.compress.options import PruneOptions
from pruneport.compress.prune import prune
from pruneport.compress.recovery import recover
from pruneport.compress.replay import Batches
from pruneport.models.images import open_images
from pruneport.models.options import ImageOptions, SourceOptions
from pruneport.models.source import open_source

__all__ = ["main"]

_NETWORKS = Path(__file__).resolve().parents[1] / "tests" / "real" / "networks.py"
_CIFAR = {"shape": (3, 32, 32), "round_to": 1, "images": "cifar", "calibration": 512}
_IMAGENET = {"shape": (3, 224, 224), "round_to": 8, "images": "imagenet", "calibration": 256}
_CASES: dict[str, dict[str, Any]] = {
    "resnet20": _CIFAR | {"source": f"{_NETWORKS}:resnet20", "file": "cifar10_resnet20.th", "kept": (0.69, 0.51)},
    "resnet56": _CIFAR | {"source": f"{_NETWORKS}:resnet56", "file": "cifar10_resnet56.th", "kept": (0.78, 0.59, 0.5)},
    "resnet50_v1": _IMAGENET
    | {"source": f"{_NETWORKS}:resnet50_v1", "file": "resnet50_v1_imagenet.pth", "kept": (0.87, 0.75, 0.63, 0.53)},
    "mobilenet_v2": _IMAGENET
    | {"source": "torchvision:mobilenet_v2", "file": "mobilenet_v2-b0353104.pth", "kept": (0.87, 0.75)},
}


def main() -> None:
    """Measure, print and write JSON after every row, so that an interrupted run keeps what it has."""
    parser = argparse.ArgumentParser(description="Measure accuracy after pruning without training.")
    parser.add_argument("--data", type=Path, required=True, help="holds weights/ and data/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--networks", nargs="+", choices=list(_CASES), default=list(_CASES))
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if arguments.out.is_file():  # networks measured before stay
        earlier = json.loads(arguments.out.read_text(encoding="utf-8"))["rows"]
        rows = [row for row in earlier if row["network"] not in arguments.networks]
    for name in arguments.networks:
        for row in _measure(name, _CASES[name], arguments.data):
            rows.append(row)
            print(json.dumps(row), flush=True)
            content = {"rows": rows, "versions": library_versions(), "device": describe_device("cpu", 0)}
            arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _measure(name: str, case: dict[str, Any], data: Path) -> Any:
    options = SourceOptions(
        source=case["source"], checkpoint=data / "weights" / case["file"], input_shape=case["shape"]
    )
    dense, source = open_source(options)
    test, calibration = _images(case, data)
    dense_top1 = _top1(dense, test)
    for kept in case["kept"]:
        pruned = prune(dense, source, PruneOptions(flops=kept, round_to=case["round_to"]))
        for recovery in ("none", "bn", "reconstruct"):
            network, start = copy.deepcopy(pruned.network), time.monotonic()
            if recovery != "none":
                recover(recovery, dense, network, pruned.plan.groups, calibration)
            seconds = time.monotonic() - start
            yield {
                "network": name,
                "macs_kept": round(pruned.plan.pruned.macs / pruned.plan.dense.macs, 4),
                "criterion": "l1",
                "ranking": "uniform",
                "scope": "filters",
                "recovery": recovery,
                "calibration_images": 0 if recovery == "none" else case["calibration"],
                "test_images": sum(len(labels) for _, labels in test),
                "dense_top1": round(dense_top1, 4),
                "top1": round(_top1(network, test), 4),
                "recovery_s": round(seconds, 1),
                "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }


def _images(case: dict[str, Any], data: Path) -> tuple[list[tuple[Tensor, Tensor]], Batches]:
    if case["images"] == "cifar":
        tests = ImageOptions(images=data / "data/tasks/cifar10/test")
        given = ImageOptions(images=data / "data/tasks/cifar10/train", images_limit=case["calibration"])
        found, training = open_images(tests, case["shape"]), open_images(given, case["shape"])
        assert found is not None
        assert training is not None
        return _labelled(found.batches(50)), training.loaders(32)
    both = open_images(ImageOptions(images=data / "data/imagenet-samples", resize=256), case["shape"])
    assert both is not None
    assert both.labels is not None
    # One image a class: classes 0, 4, 8, ... are tested, classes 1, 3, 5, ... calibrate.
    test = both.part(range(0, len(both), 4))
    return _labelled(test.batches(50)), both.part(range(1, len(both), 2)).part(range(case["calibration"])).loaders(32)


def _labelled(batches: Any) -> list[tuple[Tensor, Tensor]]:
    return [(inputs, labels) for inputs, labels in batches if labels is not None]


@torch.inference_mode()
def _top1(network: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> float:
    right = sum(int((network(inputs).argmax(1) == labels).sum()) for inputs, labels in batches)
    return right / sum(len(labels) for _, labels in batches)


if __name__ == "__main__":
    main()
