"""How much faster a network is at equal accuracy: our recipe against the uniform one, which torch-pruning has as well.

``python -m pruneport.bench.experiments.latencies.equal_accuracy --data FOLDER --out FILE``, where FOLDER holds what the
tests marked ``real`` use. The uniform recipe, l1 and uniform, is pruned to many shares of the compute, without recovery
and with BatchNorm's statistics measured anew; ours to a few, reconstructed and imitated. All are tested on the same
images and timed in turns with the dense network. ``equal`` in the file says for each of ours which latency the uniform
recipe has at the same top-1, between two of its networks by a straight line, and the ratio. With ``--tf32`` the same
command adds latencies in TF32, which a process of its own must time. What is in the file is not measured again.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from pruneport.bench.devices import cpu_in_use_by_others, describe_device, latency_versions
from pruneport.bench.experiments.accuracy import CASES, Case
from pruneport.bench.experiments.networks.timed import TimedNetwork, open_timed
from pruneport.bench.experiments.plots.equal_accuracy import draw_equal_accuracy
from pruneport.bench.gpu_state import gpu_library_versions
from pruneport.bench.latency.measure import preflight
from pruneport.bench.options import BenchOptions, LatencyOptions
from pruneport.compress.assessment import assess
from pruneport.compress.devices import find_device
from pruneport.compress.options import CompressOptions
from pruneport.compress.prune import prune
from pruneport.compress.recovery.imitate import Effort
from pruneport.export.card.intervals import share_interval
from pruneport.export.onnx.onnx_file import write_onnx
from pruneport.files import write_whole

__all__ = ["compare", "latency_at", "main"]

_RECIPES = {"uniform": ("l1", "uniform"), "ours": ("block-hessian", "sensitivity")}
_RECOVERIES = {"uniform": ("none", "bn"), "ours": ("reconstruct", "imitate")}
_KEYS = ("network", "recipe", "target", "recovery")
Row = dict[str, Any]


def main() -> None:
    """Measure, print and write JSON after every row, so that an interrupted run keeps what it has; then draw."""
    arguments = _arguments()
    rows: list[Row] = []
    if arguments.out.is_file():
        rows = json.loads(arguments.out.read_text(encoding="utf-8"))["rows"]
    where = LatencyOptions(
        provider=arguments.provider,
        threads=arguments.threads,
        repeats=arguments.repeats,
        tf32=arguments.tf32,
        cuda_graph=arguments.cuda_graph,
    )
    preflight(BenchOptions(provider=where.provider, tf32=where.tf32))
    device = describe_device(where.provider, 0) | {"cpu_in_use_by_others": cpu_in_use_by_others()}
    for row in _measure(arguments, where, rows):
        rows = [other for other in rows if _key(other) != _key(row)] + [row]
        print(json.dumps(row), flush=True)
        content = {
            "rows": rows,
            "equal": compare(rows),
            "provider": where.provider,
            "cuda_graph": where.cuda_graph,
            "versions": {**latency_versions(), **(gpu_library_versions() if where.provider != "cpu" else {})},
            "device": device,
        }
        write_whole(arguments.out, json.dumps(content, indent=1) + "\n")
    for entry in compare(rows):
        print(_said(entry))
    draw_equal_accuracy(rows, arguments.out.with_suffix(".svg"))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="holds weights/ and data/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--network", choices=list(CASES), default="resnet50_v1")
    parser.add_argument("--uniform", nargs="*", type=float, default=[0.95, 0.9, 0.87, 0.8, 0.75, 0.7], help="of MACs")
    parser.add_argument("--ours", nargs="*", type=float, default=[0.75, 0.63, 0.53], help="of MACs")
    parser.add_argument("--recoveries", nargs="+", choices=_RECOVERIES["ours"], default=_RECOVERIES["ours"])
    parser.add_argument("--recovery-minutes", type=float, help="for imitate")
    parser.add_argument("--recovery-steps", type=int, help="for imitate, in the place of minutes")
    parser.add_argument("--calibration-images", type=int)
    parser.add_argument("--accelerator", default="auto", help="as of compress: auto, cpu, cuda")
    parser.add_argument("--provider", choices=["cpu", "cuda", "tensorrt"], default="cpu")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--threads", type=int, help="on the CPU")
    parser.add_argument("--repeats", type=int, default=BenchOptions.repeats)
    parser.add_argument("--tf32", action="store_true")
    parser.add_argument("--cuda-graph", action="store_true")
    return parser.parse_args()


def _measure(arguments: argparse.Namespace, where: LatencyOptions, rows: Sequence[Row]) -> Iterator[Row]:
    """Yield a row for every recipe, share and recovery of which anything is missing."""
    case = CASES[arguments.network]
    case = replace(case, calibration=arguments.calibration_images or case.calibration)
    precision, device = "tf32" if arguments.tf32 else "fp32", find_device(arguments.accelerator)
    effort = Effort(minutes=arguments.recovery_minutes, steps=arguments.recovery_steps)
    there = {_key(row): row for row in rows}
    shares = {"uniform": arguments.uniform, "ours": arguments.ours}
    recoveries = {**_RECOVERIES, "ours": tuple(arguments.recoveries)}
    with open_timed(case, arguments.data, _options(case, "ours"), where, arguments.batches, device) as timed:
        for recipe, of_macs in shares.items():
            known, options = timed, _options(case, recipe)
            if recipe != "ours":
                known = replace(timed, assessed=assess(timed.dense.network, timed.dense.source, options))
            for share in of_macs:
                latency: dict[str, Any] | None = None
                for recovery in recoveries[recipe]:
                    row = there.get((arguments.network, recipe, share, recovery), {})
                    if precision in row.get("latency", {}):
                        continue
                    asked = replace(options, flops=share)
                    pruned = prune(known.dense.network, known.dense.source, asked, assessment=known.assessed)
                    latency = latency or _latency(known, pruned.network, arguments.repeats)
                    left = row or known.recover(pruned, recovery, replace(effort, seed=known.dense.source.seed))
                    interval = share_interval(left["top1"] * left["test_images"], left["test_images"])
                    yield {
                        **dict(zip(_KEYS, (arguments.network, recipe, share, recovery), strict=True)),
                        **left,
                        "top1_low": round(interval.low, 4),
                        "top1_high": round(interval.high, 4),
                        "latency": {**row.get("latency", {}), precision: latency},
                    }


def _options(case: Case, recipe: str) -> CompressOptions:
    """A recipe's, but for the share."""
    criterion, ranking = _RECIPES[recipe]
    return CompressOptions(flops=0.5, criterion=criterion, ranking=ranking, round_to=case.round_to)  # type: ignore[arg-type]


def _latency(network: TimedNetwork, pruned: nn.Module, repeats: int) -> dict[str, Any]:
    """Of a pruned network at each batch size, as a share of the dense one's; what its weights are does not matter."""
    path = network.dense.path.with_name("pruned.onnx")
    write_onnx(pruned, network.dense.source.takes, path, {})
    timed = {batch: timer.time(path, repeats) for batch, timer in network.timers.items()}
    return {
        str(batch): {"share": entry.share, "low": entry.low, "high": entry.high, "dense_ms": entry.dense_ms}
        for batch, entry in timed.items()
    }


def compare(rows: Sequence[Row]) -> list[Row]:
    """For each of ours, precision and batch size: the uniform recipe's latency at the same top-1, and the ratio.

    Args:
        rows: As the file has them.

    Returns:
        Rows with ``uniform_share`` and ``ratio``, which are None where ``latency_at`` knows none.
    """
    found = []
    for row in (row for row in rows if row["recipe"] == "ours"):
        for precision, batch in ((precision, batch) for precision, of in row["latency"].items() for batch in of):
            share = row["latency"][precision][batch]["share"]
            for against in _RECOVERIES["uniform"]:
                line = [
                    (other["latency"][precision][batch]["share"], other["top1"])
                    for other in rows
                    if (other["network"], other["recipe"], other["recovery"]) == (row["network"], "uniform", against)
                    and batch in other["latency"].get(precision, {})
                ]
                uniform = latency_at(row["top1"], [(1.0, row["dense_top1"]), *line])
                found.append(
                    {
                        **{key: row[key] for key in ("network", "target", "recovery", "top1")},
                        "precision": precision,
                        "batch": int(batch),
                        "share": round(share, 4),
                        "against": against,
                        "uniform_share": None if uniform is None else round(uniform, 4),
                        "ratio": None if uniform is None else round(uniform / share, 3),
                    }
                )
    return found


def latency_at(top1: float, line: Sequence[tuple[float, float]]) -> float | None:
    """The least latency at which networks on a line reach a top-1.

    Args:
        top1: To be reached.
        line: Latency and top-1 of networks, the dense one first; straight between neighbours.

    Returns:
        The dense one's latency where none is so accurate; None where the fastest is more accurate, so that a faster one
        would do, of which nothing is known.

    Example:
        >>> latency_at(0.7, [(1.0, 0.8), (0.8, 0.6), (0.6, 0.1)])
        0.9
    """
    points = sorted(line)
    if points[0][1] > top1:
        return None
    for (low, under), (high, over) in itertools.pairwise(points):
        if under <= top1 <= over:
            return round(high if under == over else low + (high - low) * (top1 - under) / (over - under), 6)
    return line[0][0]


def _said(entry: Mapping[str, Any]) -> str:
    """A comparison as text."""
    what = f"{entry['network']} {entry['target']:g} {entry['recovery']}, top-1 {100 * entry['top1']:.1f} %"
    where = f"{entry['precision']} batch {entry['batch']}: {entry['share']:.3f} of dense"
    ratio = "faster" if entry["ratio"] is None else f"{entry['uniform_share']:.3f}, {entry['ratio']:.2f}x"
    return f"{what}, {where}; uniform, {entry['against']}: {ratio}"


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells a row from others of its file."""
    return tuple(row[key] for key in _KEYS)


if __name__ == "__main__":
    main()
