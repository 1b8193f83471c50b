"""What a latency target is worth: predicted against measured, and accuracy at equal latency against a MACs target.

``python bench/experiments/latency_target.py --data FOLDER --out bench/results/latency_target.json``, where FOLDER holds
the checkpoints and images that the tests marked ``real`` use. For each network and target: ``latency`` is asked for,
and then the ``flops`` that come to the same measured latency are sought by timing. Both are recovered by reconstruction
and tested on the same images. Rows of kind ``held-out`` say how far the model is off on networks it was not fitted to.
Run it on a quiet machine. A row that is in the file already is not measured again. ``--provider cuda``, alone or with
``--precision fp16``, times on a GPU, into a file of its own; ``--networks resnet20`` tries the script.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
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
from pruneport.bench.experiments.plots.latency import draw_latency
from pruneport.bench.latency.timer import TimedShare
from pruneport.bench.options import LatencyOptions
from pruneport.bench.timings.calibrate import draw_allocations, time_allocations
from pruneport.commands.timing.loop import LatencyPruner
from pruneport.commands.timing.measuring import width_step_on
from pruneport.commands.timing.tables import form_on, timings_for
from pruneport.compress.allocation.latency_model import fit_latency
from pruneport.compress.devices import find_device
from pruneport.compress.graph.widths import possible_widths
from pruneport.compress.options import CompressOptions, PruneOptions
from pruneport.compress.prune import Pruned, prune

__all__ = ["main"]

_NETWORKS = ("resnet50_v1", "mobilenet_v2", "efficientnet_lite0")
_SEARCHES = 6  # timings for the MACs target of the same latency
_CLOSE = 0.01  # of the latency


def main() -> None:
    """Measure, print and write JSON after every row, so that an interrupted run keeps what it has; then draw."""
    parser = argparse.ArgumentParser(description="Latency as a target against multiply-accumulates as one.")
    parser.add_argument("--data", type=Path, required=True, help="holds weights/ and data/")
    parser.add_argument("--out", type=Path, required=True)
    add_place(parser)
    parser.add_argument("--networks", nargs="+", choices=list(CASES), default=list(_NETWORKS))
    parser.add_argument("--targets", nargs="*", type=float, default=[0.75, 0.5])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--ranking", default="sensitivity", choices=["sensitivity", "uniform"])
    parser.add_argument("--calibration-images", type=int, default=256)
    arguments = parser.parse_args()
    where, device = place_of(arguments, arguments.batch), find_device(arguments.accelerator)
    rows = read_rows(arguments.out, where)
    for name in arguments.networks:
        case = replace(CASES[name], calibration=arguments.calibration_images)
        done = {(row["kind"], row["target"]) for row in rows if row["network"] == name}
        for row in _measure(case, arguments.targets, arguments.ranking, arguments.data, where, device, done):
            rows.append({"network": name, "threads": arguments.threads, "batch": arguments.batch, **row})
            print(json.dumps(rows[-1]), flush=True)
            write_rows(arguments.out, rows, where)
    draw_latency(rows, arguments.out.with_suffix(".svg"))


def _measure(
    case: Case,
    targets: list[float],
    ranking: Any,
    data: Path,
    where: LatencyOptions,
    device: torch.device,
    done: set[Any],
) -> Iterator[Row]:
    """Yield one row for the model, and two for every target that is not measured yet."""
    options = CompressOptions(flops=0.5, criterion="block-hessian", ranking=ranking)
    with open_timed(case, data, options, where, [where.latency_batch], device) as timed:
        if ("held-out", None) not in done:
            yield {"kind": "held-out", "target": None, **_held_out(timed)}
        for target in targets:
            if {("latency", target), ("flops", target)} <= done:
                continue
            asked = replace(options, flops=None, latency=target)
            met = LatencyPruner(where=where)(timed.dense.network, timed.dense.source, asked, print, timed.assessed)
            reached = met.plan.latency
            assert reached is not None
            best = reached.rounds[reached.chosen]
            yield {
                "kind": "latency",
                "target": target,
                "predicted_first": reached.rounds[0].predicted,
                "measured_first": reached.rounds[0].measured,
                "rounds": len(reached.rounds),
                "measured": best.measured,
                "low": best.low,
                "high": best.high,
                **timed.recover(met),
            }
            assert best.measured is not None
            equal, share = _equal_flops(timed, options, best.measured)
            yield {
                "kind": "flops",
                "target": target,
                "measured": share.share,
                "low": share.low,
                "high": share.high,
                **timed.recover(equal),
            }


def _held_out(network: TimedNetwork) -> Row:
    """How far the model is off on networks that it was not fitted to."""
    dense, assessed = network.dense, network.assessed
    timings = timings_for(dense, assessed, network.where, print)
    model = fit_latency(form_on(timings.table.staircase, assessed, dense.network), timings.to_fit())
    allowed = replace(assessed.options, round_to=width_step_on(timings.table.staircase, assessed.options))
    widths = {
        index: possible_widths(group, allowed)
        for index, (group, reason) in enumerate(zip(assessed.groups, assessed.reasons, strict=True))
        if not reason
    }
    full = np.array([group.width for group in assessed.groups], dtype=np.float64)
    unseen = draw_allocations(full, widths, seed=1)[1:]  # the first is the lowest again

    def export(path: Path, kept: Any) -> None:
        raise NotImplementedError("these networks are sliced")

    (timer,) = network.timers.values()
    timed = time_allocations(timer, dense.network, dense.path, assessed.groups, unseen, export, print)
    errors = [abs(model.of(kept) / entry.share - 1) for kept, entry in zip(unseen, timed, strict=True)]
    macs = [
        abs(assessed.cost.share_of_dense(kept, "flops") / entry.share - 1)
        for kept, entry in zip(unseen, timed, strict=True)
    ]
    return {
        "fitted": len(timings.table.timings),
        "predicted": len(unseen),
        "mean_error": round(float(np.mean(errors)), 4),
        "largest_error": round(float(np.max(errors)), 4),
        "left_out_error": model.error,
        "macs_mean_error": round(float(np.mean(macs)), 4),
        "macs_largest_error": round(float(np.max(macs)), 4),
        "mean_spread": round(float(np.mean([entry.spread for entry in timed])), 4),
        "dense_ms": timings.table.dense_ms,
        "step": allowed.round_to,
        "cpu_in_use_by_others": cpu_in_use_by_others(),
    }


def _equal_flops(network: TimedNetwork, options: PruneOptions, share: float) -> tuple[Pruned, TimedShare]:
    """The network of a MACs target whose measured latency is the nearest to ``share``."""
    found: list[tuple[float, Pruned, TimedShare]] = []
    tried: dict[float, float] = {0.0: 0.0, 1.0: 1.0}
    budget, dense = share, network.dense
    for _ in range(_SEARCHES):
        pruned = prune(dense.network, dense.source, replace(options, flops=budget), print, network.assessed)
        (timed,) = network.time(pruned.network).values()
        found.append((abs(timed.share / share - 1), pruned, timed))
        print(f"flops {budget:.3f}: {timed.share:.3f} of the dense latency, {share:.3f} wanted")
        if found[-1][0] <= _CLOSE:
            break
        tried[budget] = timed.share
        below = max((entry for entry in tried.items() if entry[1] <= share), key=lambda entry: entry[1])
        above = min((entry for entry in tried.items() if entry[1] > share), key=lambda entry: entry[1])
        budget = below[0] + (above[0] - below[0]) * (share - below[1]) / (above[1] - below[1])
    _, pruned, timed = min(found, key=lambda entry: entry[0])
    return pruned, timed


if __name__ == "__main__":
    main()
