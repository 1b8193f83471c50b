"""Width, depth, and both: accuracy against measured latency where filters, whole residual branches, or either may go.

``python bench/experiments/depth.py --data FOLDER --out bench/results/depth.json``, where FOLDER holds the checkpoints
and images that the tests marked ``real`` use. For each way and target the network is pruned, recovered by
reconstruction, tested on the same images, and timed in turns with the dense one at each batch size. Depth alone leaves
all widths as they are, by a ``max_pruning_ratio`` that allows no group to lose anything. Beside the JSON lies a plot,
of the same name. Run it on a quiet machine. A row that is in the file already is not measured again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from pruneport.bench.devices import cpu_in_use_by_others, describe_device, latency_versions
from pruneport.bench.experiments.accuracy import CASES, Case, count_top1, read_images
from pruneport.bench.latency.timer import DenseTimer
from pruneport.bench.options import LatencyOptions
from pruneport.commands.timing.loop import LatencyPruner
from pruneport.commands.timing.measuring import DenseFile
from pruneport.commands.timing.rounds import time_exported
from pruneport.compress.activations.calibration import Calibration
from pruneport.compress.assessment import Assessment, assess, reasons_with
from pruneport.compress.options import CompressOptions
from pruneport.compress.prune import Pruned
from pruneport.compress.recovery.recover import recover
from pruneport.errors import TargetError
from pruneport.export.onnx.onnx_file import write_onnx
from pruneport.export.options import DEFAULTS
from pruneport.files import write_whole
from pruneport.models.options import SourceOptions
from pruneport.models.source import open_source

__all__ = ["main"]

WAYS: Mapping[str, Mapping[str, Any]] = {
    "width": {"depth": "never"},
    "depth": {"depth": "auto", "max_pruning_ratio": 0.001},
    "both": {"depth": "auto"},
}


@dataclass(frozen=True, kw_only=True)
class _Bench:
    """A dense network that is timed, with all that is known of it."""

    dense: DenseFile
    assessed: Assessment
    timers: Mapping[int, DenseTimer]
    calibration: Calibration
    test: list[tuple[Tensor, Tensor]]
    where: LatencyOptions


def main() -> None:
    """Measure, print and write JSON after every row, so that an interrupted run keeps what it has."""
    parser = argparse.ArgumentParser(description="Narrower layers against fewer blocks, and both.")
    parser.add_argument("--data", type=Path, required=True, help="holds weights/ and data/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True, help="keeps the timings that models are fitted to")
    parser.add_argument("--networks", nargs="+", choices=list(CASES), default=["resnet50_v1"])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--flops", nargs="*", type=float, default=[0.87, 0.75, 0.63])
    parser.add_argument("--latency", nargs="*", type=float, default=[], help="shares of the dense latency at batch 1")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--calibration-images", type=int)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if arguments.out.is_file():
        rows = json.loads(arguments.out.read_text(encoding="utf-8"))["rows"]
    where = LatencyOptions(threads=arguments.threads, latency_batch=1, latency_cache=arguments.cache)
    targets = [("flops", value) for value in arguments.flops] + [("latency", value) for value in arguments.latency]
    for name in arguments.networks:
        case = CASES[name]
        case = replace(case, calibration=arguments.calibration_images or case.calibration)
        done = {(row["way"], row["target"], row["value"]) for row in rows if row["network"] == name}
        wanted = [(way, *target) for target in targets for way in arguments.ways]
        wanted = [entry for entry in wanted if entry not in done]
        for row in _measure(case, wanted, arguments.batches, arguments.data, where) if wanted else ():
            rows.append({"network": name, "threads": arguments.threads, **row})
            print(json.dumps(rows[-1]), flush=True)
            content = {"rows": rows, "versions": latency_versions(), "device": describe_device("cpu", 0)}
            write_whole(arguments.out, json.dumps(content, indent=1) + "\n")
    _plot(rows, arguments.out.with_suffix(".svg"))


def _measure(
    case: Case, wanted: Sequence[tuple[str, str, float]], batches: Sequence[int], data: Path, where: LatencyOptions
) -> Iterator[dict[str, Any]]:
    """Yield one row for every way and target."""
    dense, source = open_source(
        SourceOptions(source=case.source, checkpoint=data / "weights" / case.weights, input_shape=case.shape)
    )
    test, calibrations = read_images(case, data)
    options = CompressOptions(
        flops=0.5, criterion="block-hessian", ranking="sensitivity", round_to=case.round_to, depth="auto"
    )
    assessed = assess(dense, source, options, calibrations["images"], progress=print)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "dense.onnx"
        write_onnx(dense, source.takes, path, {})
        bench = _Bench(
            dense=DenseFile(network=dense, source=source, path=path, form=DEFAULTS),
            assessed=assessed,
            timers={batch: DenseTimer(path, where, batch) for batch in batches},
            calibration=calibrations["images"],
            test=test,
            where=where,
        )
        dense_top1 = count_top1(dense, test)
        for way, target, value in wanted:
            changes: dict[str, Any] = {"flops": None, **WAYS[way], target: value}
            asked = replace(options, **changes)
            row = {"way": way, "target": target, "value": value, "dense_top1": round(dense_top1, 4)}
            try:
                yield {**row, **_worth(bench, asked)}
            except TargetError as error:
                if "too noisy" in str(error):  # to be measured another time
                    print(error)
                    continue
                yield {**row, "out_of_reach": str(error).partition(". What helps")[0]}


def _worth(bench: _Bench, asked: CompressOptions) -> dict[str, Any]:
    """What is left of the accuracy after recovery, and of the latency at each batch size."""
    dense = bench.dense
    known = replace(bench.assessed, reasons=reasons_with(dense.network, bench.assessed, asked))
    met: Pruned = LatencyPruner(where=bench.where)(dense.network, dense.source, asked, print, known)
    recover("reconstruct", dense.network, met.network, met.plan.groups, bench.calibration.batches)
    timed = {batch: time_exported(dense, timer, met.network, print) for batch, timer in bench.timers.items()}
    return {
        "dropped": [branch.name for branch in met.plan.branches],
        "narrower_groups": sum(group.narrower for group in met.plan.groups),
        "macs_kept": round(met.plan.macs_kept, 4),
        "params_kept": round(met.plan.params_kept, 4),
        "top1": round(count_top1(met.network, bench.test), 4),
        "test_images": sum(len(labels) for _, labels in bench.test),
        "latency": {
            str(batch): {"share": entry.share, "low": entry.low, "high": entry.high, "dense_ms": entry.dense_ms}
            for batch, entry in timed.items()
        },
        "cpu_in_use_by_others": cpu_in_use_by_others(),
    }


def _plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Accuracy against the share of the dense latency: a panel for each network and batch size, a line for each way."""
    from matplotlib.figure import Figure  # slow to import

    measured = [row for row in rows if "latency" in row]
    panels = sorted({(row["network"], int(batch)) for row in measured for batch in row["latency"]})
    if not panels:
        return
    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    for axes, (network, batch) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for way, marker in zip(WAYS, "o^s", strict=True):
            points = sorted(
                (row["latency"][str(batch)]["share"], 100 * row["top1"])
                for row in measured
                if row["network"] == network and row["way"] == way and str(batch) in row["latency"]
            )
            axes.plot(*zip(*points, strict=True), marker=marker, label=way) if points else None
        axes.set(title=f"{network}, batch {batch}", xlabel="share of the dense latency", ylabel="top-1, %")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path)


if __name__ == "__main__":
    main()
