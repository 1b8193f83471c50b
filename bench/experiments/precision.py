"""Precisions beside each other: dense and pruned in fp32, fp16 and int8, on real checkpoints and the CPU.

``python bench/experiments/precision.py --data FOLDER --out bench/results/precision.json``, where FOLDER holds what the
tests marked ``real`` use. Networks and images are those of ``accuracy``: pruned to a share of the MACs with the
defaults (block Hessian, sensitivity, reconstruction), int8 calibrated on the same calibration images, top-1 and
agreement counted on images that no step has seen. All files of a network are timed in the same rounds. A network that
is in the file already is not measured again. Needs a machine with nothing else to do.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from torch import nn

from pruneport.bench.experiments.accuracy import CASES, Case, read_images
from pruneport.bench.latency.measure import measure
from pruneport.bench.options import BenchOptions
from pruneport.compress.activations.calibration import Calibration
from pruneport.compress.assessment import assess
from pruneport.compress.options import PruneOptions
from pruneport.compress.prune import prune
from pruneport.compress.recovery.recover import recover
from pruneport.export.bundle.bundle import DENSE_ONNX, MODEL_ONNX, onnx_name
from pruneport.export.cpu_session import open_cpu_session
from pruneport.export.onnx.exporter import export_network
from pruneport.export.options import ExportOptions, OnnxPrecision
from pruneport.export.precisions.comparison import compare
from pruneport.export.precisions.half import half_tolerance
from pruneport.export.precisions.providers import asked_precisions
from pruneport.export.precisions.writing import write_precisions
from pruneport.files import write_whole
from pruneport.models.options import SourceOptions
from pruneport.models.source import open_source
from pruneport.progress import silent

__all__ = ["main"]

_NETWORKS = ("resnet50_v1", "mobilenet_v2", "efficientnet_lite0")


def main() -> None:
    """Measure, print and write JSON after every network, so that an interrupted run keeps what it has."""
    parser = argparse.ArgumentParser(description="Measure precisions of dense and pruned networks.")
    parser.add_argument("--data", type=Path, required=True, help="holds weights/ and data/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--networks", nargs="+", choices=list(CASES), default=list(_NETWORKS))
    parser.add_argument("--kept", type=float, default=0.75, help="share of the MACs")
    parser.add_argument("--precisions", nargs="+", choices=get_args(OnnxPrecision), default=["fp32", "int8"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--repeats", type=int, default=30)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if arguments.out.is_file():
        rows = json.loads(arguments.out.read_text(encoding="utf-8"))["rows"]
    done = {(row["network"], row["target"]) for row in rows}
    form = ExportOptions(precisions=tuple(arguments.precisions))
    timing = BenchOptions(batches=tuple(arguments.batches), repeats=arguments.repeats)
    for name in arguments.networks:
        if (name, arguments.kept) not in done:
            rows.append(_measure(name, CASES[name], arguments.kept, arguments.data, form, timing))
            print(_table(rows[-1]), flush=True)
            write_whole(arguments.out, json.dumps({"rows": rows}, indent=1) + "\n")


def _measure(
    name: str, case: Case, kept: float, data: Path, form: ExportOptions, timing: BenchOptions
) -> dict[str, Any]:
    """Everything of one network."""
    options = SourceOptions(source=case.source, checkpoint=data / "weights" / case.weights, input_shape=case.shape)
    dense, source = open_source(options)
    test, calibrations = read_images(case, data)
    calibration = calibrations["images"]
    asked = PruneOptions(flops=kept, round_to=case.round_to, criterion="block-hessian", ranking="sensitivity")
    pruned = prune(dense, source, asked, assessment=assess(dense, source, asked, calibration))
    recover("reconstruct", dense, pruned.network, pruned.plan.groups, calibration.batches)
    row: dict[str, Any] = {"network": name, "target": kept, "macs_kept": round(pruned.plan.macs_kept, 4)}
    precisions = asked_precisions(form)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        row["precisions"] = []
        for kind, file, network in (("dense", DENSE_ONNX, dense), ("pruned", MODEL_ONNX, pruned.network)):
            _write(folder, file, kind, network, case, form, calibration)
            sessions = {each: open_cpu_session(folder / onnx_name(file, each)) for each in precisions}
            parts = ((inputs.contiguous(), len(labels), labels.numpy()) for inputs, labels in test)
            records, _ = compare(kind, sessions, parts, "images", {"int8": "cpu"}, half_tolerance(folder / file))
            for record in records:
                size = (folder / onnx_name(file, record.precision)).stat().st_size
                row["precisions"].append(asdict(record) | {"bytes": size})
        others = {
            each: (folder / onnx_name(DENSE_ONNX, each), folder / onnx_name(MODEL_ONNX, each))
            for each in precisions[1:]
        }
        measured = measure(folder / DENSE_ONNX, folder / MODEL_ONNX, timing, print, others)
    return row | {"bench": measured.to_dict()}


def _write(
    folder: Path, file: str, kind: str, network: nn.Module, case: Case, form: ExportOptions, calibration: Calibration
) -> None:
    """One network's files in every precision."""
    exported = export_network(network, case.shape, form)
    exported.save(folder / file, {})
    half = export_network(network, case.shape, form, precision="fp16") if "fp16" in form.precisions else None
    write_precisions(folder, file, kind, network, exported, half, {}, "cpu", calibration, silent)


def _table(row: dict[str, Any]) -> str:
    """What was found, as text."""
    lines = [f"{row['network']} at {row['macs_kept']} of its MACs"]
    for record in row["precisions"]:
        times = [_times(entry, record["network"], record["precision"]) for entry in row["bench"]["batches"]]
        lines.append(
            f"  {record['network']:7}{record['precision']:5} top-1 {record['top1']:.3f} agreement "
            f"{record['agreement']:.3f} error {record['output_error']:.2g} {record['bytes'] / 1e6:.1f} MB "
            f"{'; '.join(times)}"
        )
    return "\n".join(lines)


def _times(entry: dict[str, Any], network: str, precision: str) -> str:
    """Median and speed-up over dense fp32 at a batch size."""
    if precision == "fp32":
        timing, speedup = entry[network], entry["speedup"] if network == "pruned" else None
    else:
        (times,) = [each for each in entry["precisions"] if each["precision"] == precision]
        timing, speedup = times[network], times[f"{network}_speedup"]
    ratio = f" {speedup['ratio']:.2f}x ({speedup['low']:.2f}-{speedup['high']:.2f})" if speedup else ""
    return f"batch {entry['batch']}: {timing['p50_ms']:.2f} ms{ratio}"


if __name__ == "__main__":
    main()
