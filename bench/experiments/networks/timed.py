"""A trained network that is pruned, recovered, tested on labelled images and timed, for accuracy at equal latency."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pruneport.bench.devices import describe_device, latency_versions
from pruneport.bench.experiments.accuracy import Case, count_top1, read_images
from pruneport.bench.gpu_state import gpu_library_versions
from pruneport.bench.latency.measure import preflight
from pruneport.bench.latency.timer import DenseTimer, TimedShare
from pruneport.bench.options import BenchOptions, LatencyOptions
from pruneport.commands.timing.measuring import DenseFile
from pruneport.commands.timing.rounds import time_exported
from pruneport.compress.activations.calibration import Calibration
from pruneport.compress.assessment import Assessment, assess
from pruneport.compress.devices import CPU, in_full_precision
from pruneport.compress.options import CompressOptions
from pruneport.compress.prune import Pruned
from pruneport.compress.recovery.imitate import Effort
from pruneport.compress.recovery.recover import recover
from pruneport.errors import InputError
from pruneport.export.onnx.onnx_file import write_onnx
from pruneport.export.options import DEFAULTS
from pruneport.files import write_whole
from pruneport.models.options import SourceOptions
from pruneport.models.source import open_source

__all__ = ["Row", "TimedNetwork", "add_place", "open_timed", "place_of", "read_rows", "write_rows"]

_EFFORT = Effort()
Row = dict[str, Any]


def add_place(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say where networks are timed, and where everything else is computed."""
    parser.add_argument("--provider", choices=["cpu", "cuda", "tensorrt"], default="cpu", help="where they are timed")
    parser.add_argument("--precision", choices=["fp32", "fp16"], default="fp32", help="in which; fp16 is for GPUs")
    parser.add_argument("--cuda-graph", action="store_true")
    parser.add_argument("--threads", type=int, default=1, help="of the processor")
    parser.add_argument("--cache", type=Path, required=True, help="keeps the timings that models are fitted to")
    parser.add_argument("--accelerator", default="auto", help="as of compress: auto, cpu, cuda")


def place_of(arguments: argparse.Namespace, batch: int) -> LatencyOptions:
    """Where networks are timed by the flags of ``add_place``; TF32 is settled before torch starts the GPU.

    Raises:
        ProviderError: The provider does not run there.
    """
    preflight(BenchOptions(provider=arguments.provider, threads=arguments.threads))
    return LatencyOptions(
        provider=arguments.provider,
        threads=arguments.threads,
        cuda_graph=arguments.cuda_graph,
        latency_batch=batch,
        latency_precision=arguments.precision,
        latency_cache=arguments.cache,
    )


def read_rows(out: Path, where: LatencyOptions) -> list[Row]:
    """Rows of a file that is there.

    Raises:
        InputError: They were timed elsewhere: shares of two places are not drawn in one plot.
    """
    content: dict[str, Any] = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {"rows": []}
    there = content.get("place", _place(LatencyOptions()))
    if content["rows"] and there != _place(where):
        raise InputError(f"{out} has rows that were timed on {there}, not {_place(where)}; give another file.")
    rows: list[Row] = content["rows"]
    return rows


def write_rows(out: Path, rows: Sequence[Row], where: LatencyOptions) -> None:
    """Write rows with what they depend on."""
    content = {
        "rows": rows,
        "place": _place(where),
        "versions": latency_versions() | (gpu_library_versions() if where.provider != "cpu" else {}),
        "device": describe_device(where.provider, where.device),
    }
    write_whole(out, json.dumps(content, indent=1) + "\n")


def _place(where: LatencyOptions) -> dict[str, Any]:
    """What rows of one file have in common."""
    precision = where.latency_precision or "fp32"
    return {"provider": where.provider, "precision": precision, "cuda_graph": where.cuda_graph}


@dataclass(frozen=True, kw_only=True)
class TimedNetwork:
    """A dense network with all that is known of it.

    Attributes:
        dense: The network and its ONNX file.
        assessed: What is known of it before there is a target.
        timers: Batch size -> what times other networks in turns with the dense one.
        calibration: What a pruned network is recovered on.
        test: Batches of images and labels that no step has seen.
        dense_top1: On these, as a share.
        where: Where it is timed.
        device: Where networks are recovered and tested.
    """

    dense: DenseFile
    assessed: Assessment
    timers: Mapping[int, DenseTimer]
    calibration: Calibration
    test: Sequence[tuple[Tensor, Tensor]]
    dense_top1: float
    where: LatencyOptions
    device: torch.device = CPU

    def time(self, network: nn.Module) -> dict[int, TimedShare]:
        """Export a pruned network and time it at each batch size."""
        return {batch: time_exported(self.dense, timer, network, print) for batch, timer in self.timers.items()}

    def recover(self, pruned: Pruned, recovery: str = "reconstruct", effort: Effort = _EFFORT) -> dict[str, Any]:
        """Recover a pruned network in place, and say what is left of it, as keys of a row."""
        if recovery != "none":
            given, groups, batches = self.dense.network, pruned.plan.groups, self.calibration.batches
            with in_full_precision():
                recover(recovery, given, pruned.network, groups, batches, effort=effort, device=self.device)
        return {
            "macs_kept": round(pruned.plan.macs_kept, 4),
            "params_kept": round(pruned.plan.params_kept, 4),
            "dense_top1": round(self.dense_top1, 4),
            "top1": round(count_top1(pruned.network, self.test, self.device), 4),
            "test_images": sum(len(labels) for _, labels in self.test),
        }


@contextmanager
def open_timed(
    case: Case,
    data: Path,
    options: CompressOptions,
    where: LatencyOptions,
    batches: Sequence[int],
    device: torch.device = CPU,
) -> Iterator[TimedNetwork]:
    """Open and assess the network of a case, and export it to a file that goes when the context ends.

    Args:
        case: The network, its checkpoint and its images.
        data: Holds ``weights/`` and ``data/``.
        options: What the network is assessed for.
        where: Where it is timed.
        batches: Batch sizes that it is timed at.
        device: Where it is assessed and tested, and networks made of it are recovered.
    """
    network, source = open_source(
        SourceOptions(source=case.source, checkpoint=data / "weights" / case.weights, input_shape=case.shape)
    )
    test, calibrations = read_images(case, data)
    with in_full_precision():
        assessed = assess(network, source, options, calibrations["images"], progress=print, device=device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "dense.onnx"
        write_onnx(network, source.takes, path, {})
        yield TimedNetwork(
            dense=DenseFile(network=network, source=source, path=path, form=DEFAULTS),
            assessed=assessed,
            timers={batch: DenseTimer(path, where, batch, where.latency_precision) for batch in batches},
            calibration=calibrations["images"],
            test=test,
            dense_top1=count_top1(network, test, device),
            where=where,
            device=device,
        )
