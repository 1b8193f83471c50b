"""Width, depth, and both: accuracy against measured latency where filters, whole residual branches, or either may go.

``python bench/experiments/depth.py --data FOLDER --out bench/results/depth.json``, where FOLDER holds the checkpoints
and images that the tests marked ``real`` use. For each way and target the network is pruned, recovered by
reconstruction, tested on the same images, and timed in turns with the dense one at each batch size. Depth alone leaves
all widths as they are, by a ``max_pruning_ratio`` that allows no group to lose anything. Beside the JSON lies a plot,
of the same name. Run it on a quiet machine. A row that is in the file already is not measured again. ``--provider
cuda``, alone or with ``--precision fp16``, times on a GPU, into a file of its own; ``--networks resnet20`` tries the
script.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pruneport.bench.devices import cpu_in_use_by_others
from pruneport.bench.experiments.accuracy import CASES, Case
from pruneport.bench.experiments.networks.timed import (
    Row,
    TimedNetwork,
    add_place,
    open_timed,
    place_of,
    read_rows,
    write_rows,
)
from pruneport.bench.experiments.plots.depth import draw_depth
from pruneport.bench.options import LatencyOptions
from pruneport.commands.timing.loop import LatencyPruner
from pruneport.compress.devices import find_device
from pruneport.compress.options import CompressOptions
from pruneport.compress.prune import Pruned
from pruneport.compress.structure import reasons_with
from pruneport.errors import TargetError

__all__ = ["main"]

WAYS: Mapping[str, Mapping[str, Any]] = {
    "width": {"depth": "never"},
    "depth": {"depth": "auto", "max_pruning_ratio": 0.001},
    "both": {"depth": "auto"},
}


def main() -> None:
    """Measure, print and write JSON after every row, so that an interrupted run keeps what it has."""
    parser = argparse.ArgumentParser(description="Narrower layers against fewer blocks, and both.")
    parser.add_argument("--data", type=Path, required=True, help="holds weights/ and data/")
    parser.add_argument("--out", type=Path, required=True)
    add_place(parser)
    parser.add_argument("--networks", nargs="+", choices=list(CASES), default=["resnet50_v1"])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--flops", nargs="*", type=float, default=[0.87, 0.75, 0.63])
    parser.add_argument("--latency", nargs="*", type=float, default=[], help="shares of the dense latency at batch 1")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--calibration-images", type=int)
    arguments = parser.parse_args()
    where, device = place_of(arguments, 1), find_device(arguments.accelerator)
    rows = read_rows(arguments.out, where)
    targets = [("flops", value) for value in arguments.flops] + [("latency", value) for value in arguments.latency]
    for name in arguments.networks:
        case = CASES[name]
        case = replace(case, calibration=arguments.calibration_images or case.calibration)
        done = {(row["way"], row["target"], row["value"]) for row in rows if row["network"] == name}
        wanted = [(way, *target) for target in targets for way in arguments.ways]
        wanted = [entry for entry in wanted if entry not in done]
        for row in _measure(case, wanted, arguments.batches, arguments.data, where, device) if wanted else ():
            rows.append({"network": name, "threads": arguments.threads, **row})
            print(json.dumps(rows[-1]), flush=True)
            write_rows(arguments.out, rows, where)
    draw_depth(rows, arguments.out.with_suffix(".svg"))


def _measure(
    case: Case,
    wanted: Sequence[tuple[str, str, float]],
    batches: Sequence[int],
    data: Path,
    where: LatencyOptions,
    device: torch.device,
) -> Iterator[Row]:
    """Yield one row for every way and target."""
    options = CompressOptions(
        flops=0.5, criterion="block-hessian", ranking="sensitivity", round_to=case.round_to, depth="auto"
    )
    with open_timed(case, data, options, where, batches, device) as timed:
        for way, target, value in wanted:
            changes: dict[str, Any] = {"flops": None, **WAYS[way], target: value}
            row = {"way": way, "target": target, "value": value, "dense_top1": round(timed.dense_top1, 4)}
            try:
                yield {**row, **_worth(timed, replace(options, **changes))}
            except TargetError as error:
                if "too noisy" in str(error):  # to be measured another time
                    print(error)
                    continue
                yield {**row, "out_of_reach": str(error).partition(". What helps")[0]}


def _worth(timed: TimedNetwork, asked: CompressOptions) -> Row:
    """What is left of the accuracy after recovery, and of the latency at each batch size."""
    dense = timed.dense
    known = replace(timed.assessed, reasons=reasons_with(dense.network, timed.assessed, asked))
    met: Pruned = LatencyPruner(where=timed.where)(dense.network, dense.source, asked, print, known)
    left = timed.recover(met)
    return {
        "dropped": [branch.name for branch in met.plan.branches],
        "narrower_groups": sum(group.narrower for group in met.plan.groups),
        **left,
        "latency": {
            str(batch): {"share": entry.share, "low": entry.low, "high": entry.high, "dense_ms": entry.dense_ms}
            for batch, entry in timed.time(met.network).items()
        },
        "cpu_in_use_by_others": cpu_in_use_by_others(),
    }


if __name__ == "__main__":
    main()
