"""What our checks cost: ``compress`` and ``export`` against the plain recipe of torch-pruning and torch.onnx.export.

Both prune torchvision's ResNet-50 to half its compute and write ONNX with a dynamic batch. They run in one process, in
turn. The recipe writes a dense and a pruned file, as ``export`` does; a second ratio compares with a recipe that writes
the pruned file alone. Run: ``python -m pruneport.bench.experiments.overhead``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
import torchvision

from pruneport.bench.devices import describe_device, latency_versions
from pruneport.files import write_whole

__all__ = ["main"]

_SHAPE = (3, 224, 224)
_RECIPE_RATIO = 0.44  # brings the recipe's ResNet-50 to half of its compute


def main() -> None:
    """Measure and print, and write JSON where --out names a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="a JSON file for the result")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    result = measure_overhead(arguments.repeats)
    print(json.dumps(result, indent=1))
    if arguments.out:
        write_whole(arguments.out, json.dumps(result, indent=1) + "\n")


def measure_overhead(repeats: int) -> dict[str, Any]:
    """Time both, A B A B, after one run of each that is not counted."""
    jobs: dict[str, Callable[[Path], float]] = {"pruneport": _ours, "recipe": _recipe}
    seconds: dict[str, list[float]] = {"pruneport": [], "recipe": [], "recipe_pruned_only": []}
    macs_kept: dict[str, float] = {}
    for repeat in range(repeats + 1):
        for name, job in jobs.items():
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                macs_kept[name] = job(Path(folder))
                elapsed = time.perf_counter() - start
            if repeat:
                seconds[name].append(elapsed)
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            _recipe(Path(folder), dense=False)
            if repeat:
                seconds["recipe_pruned_only"].append(time.perf_counter() - start)
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    return {
        "network": "torchvision:resnet50",
        "macs_kept": macs_kept,
        "seconds": seconds,
        "median_s": medians,
        "ratio": medians["pruneport"] / medians["recipe"],
        "ratio_to_recipe_without_dense": medians["pruneport"] / medians["recipe_pruned_only"],
        "device": describe_device("cpu", 0),
        "versions": latency_versions(),
    }


def _ours(folder: Path) -> float:
    """Compress and export with pruneport; return the share of the compute that is left."""
    from pruneport.commands import CompressConfig, ExportConfig, compress, export

    result = compress(CompressConfig(source="torchvision:resnet50", flops=0.5, out=folder / "bundle"))
    export(ExportConfig(folder=folder / "bundle"))
    return result.plan.macs_kept


def _recipe(folder: Path, *, dense: bool = True) -> float:
    """Do what torch-pruning's and torch's own examples do, and no check more."""
    network = torchvision.models.resnet50(weights=None).eval()
    example = torch.randn(2, *_SHAPE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dense:
            _export(network, example, folder / "dense.onnx")
        before, _ = tp.utils.count_ops_and_params(network, example[:1])
        blocks = [block.conv3 for stage in (1, 2, 3, 4) for block in getattr(network, f"layer{stage}")]
        pruner = tp.pruner.MagnitudePruner(
            network,
            example[:1],
            importance=tp.importance.MagnitudeImportance(p=1),
            pruning_ratio=_RECIPE_RATIO,
            round_to=8,
            ignored_layers=[network.conv1, network.fc, *blocks],
        )
        pruner.step()
        after, _ = tp.utils.count_ops_and_params(network, example[:1])
        _export(network, example, folder / "model.onnx")
    return float(after / before)


def _export(network: torch.nn.Module, example: torch.Tensor, path: Path) -> None:
    """Write an ONNX file with a dynamic batch by torch's exporter."""
    torch.onnx.export(
        network,
        (example,),
        str(path),
        dynamo=True,
        verbose=False,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=False,
    )


if __name__ == "__main__":
    main()
