"""Latency on a GPU: dense, pruned by pruneport and by torch-pruning's uniform recipe, in every way that a GPU has.

``python -m pruneport.bench.experiments.gpu --networks resnet50 --out bench/results/gpu.json`` writes the networks as
files beside ``--out`` and times them on CUDA and TensorRT at batches 1 and 64, in fp32, TF32 and fp16, with and without
a CUDA graph. All networks of a row run in the same rounds. A row that was timed already is not timed again, so the
same command goes on where it was stopped: ``--minutes`` ends it in time, before a row that would take longer. With
``--again`` rows are timed anew that lack a share, or were timed with other options of the provider than today's. TF32
and fp32 run in processes of their own, since a process keeps what it started CUDA with. ``--only-write`` writes the
files and times nothing. ``--provider cpu --networks digits`` tries the script without a GPU.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pruneport.bench.devices import (
    ThrottleWatch,
    cpu_in_use_by_others,
    describe_device,
    latency_versions,
    sample_device,
)
from pruneport.bench.experiments.networks.gpu import DENSE, NETWORKS, Entry, files_of, write_networks
from pruneport.bench.gpu_state import gpu_library_versions
from pruneport.bench.latency.measure import preflight
from pruneport.bench.latency.providers import provider_options
from pruneport.bench.latency.sessions import Session, open_session
from pruneport.bench.latency.stats import paired_speedup, summarise
from pruneport.bench.latency.timer import SEED, Turns, take_turns, warm_up
from pruneport.bench.options import BenchOptions
from pruneport.compress.options import PruneOptions
from pruneport.errors import InputError
from pruneport.files import write_whole

__all__ = ["main"]

_KEY = ("network", "provider", "precision", "cuda_graph", "batch")


def main() -> None:
    """Write the networks, and time them in one process for each provider and use of TF32."""
    arguments = _arguments()
    end = time.time() + 60 * arguments.minutes
    if arguments.worker:
        _time_rows(arguments, arguments.end)
        return
    options = PruneOptions(
        flops=0.5, criterion="l1", ranking="uniform", scope=arguments.scope, round_to=arguments.round_to
    )
    for network in arguments.networks:
        write_networks(network, arguments.shares, arguments.precisions, _folder(arguments, network), options)
    if arguments.only_write:
        return
    for provider, tf32 in itertools.product(arguments.provider, (False, True)):
        precisions = [name for name in arguments.precisions if (name == "tf32") == tf32]
        if not precisions or time.time() > end:
            continue
        words = [*sys.argv[1:], "--worker", "--end", str(end), "--provider", provider, "--precisions", *precisions]
        done = subprocess.run([sys.executable, "-m", "pruneport.bench.experiments.gpu", *words])
        if done.returncode:
            print(f"{provider} {' '.join(precisions)}: the process ended with {done.returncode}", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--provider", nargs="+", choices=["cpu", "cuda", "tensorrt"], default=["cuda", "tensorrt"])
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "tf32", "fp16"], default=["fp32", "tf32", "fp16"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--shares", nargs="+", type=float, default=[0.75, 0.5, 0.25], help="of the MACs")
    parser.add_argument("--cuda-graph", nargs="+", choices=["off", "on"], default=["off", "on"])
    parser.add_argument("--scope", choices=["filters", "channels"], default="channels", help="of pruneport's recipe")
    parser.add_argument("--round-to", type=int, default=PruneOptions.round_to, help="of pruneport's recipe")
    parser.add_argument("--repeats", type=int, default=BenchOptions.repeats)
    parser.add_argument("--nhwc", action="store_true")
    parser.add_argument("--fuse-conv-bias", action="store_true")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which no row is begun")
    parser.add_argument("--again", action="store_true", help="what is there of other shares or options")
    parser.add_argument("--only-write", action="store_true", help="the networks' files")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--end", type=float, default=0.0, help=argparse.SUPPRESS)
    return parser.parse_args()


def _folder(arguments: argparse.Namespace, network: str) -> Path:
    """Where a network's files are: those of other recipes have another place."""
    recipe = f"{network}-{arguments.scope}-{arguments.round_to}"
    return Path(arguments.out).parent / f"{Path(arguments.out).stem}-networks" / recipe


def _time_rows(arguments: argparse.Namespace, end: float) -> None:
    """Time what is not in the file yet, in one process of one provider."""
    (provider,) = arguments.provider
    graphs = [name == "on" for name in arguments.cuda_graph if provider != "cpu" or name == "off"]
    longest, device = 0.0, None
    rows_to_time = itertools.product(arguments.networks, arguments.batches, arguments.precisions, graphs)
    for network, batch, precision, graph in rows_to_time:
        options = BenchOptions(
            provider=provider,
            batches=(batch,),
            repeats=arguments.repeats,
            tf32=precision == "tf32" and provider != "cpu",
            cuda_graph=graph,
            nhwc=arguments.nhwc and provider == "cuda",
            fuse_conv_bias=arguments.fuse_conv_bias and provider == "cuda",
        )
        row: dict[str, Any] = {
            "network": network,
            "provider": provider,
            "precision": precision,
            "cuda_graph": graph,
            "batch": batch,
            "recipe": {"scope": arguments.scope, "round_to": arguments.round_to, "nhwc": options.nhwc}
            | {"fuse_conv_bias": options.fuse_conv_bias},
        }
        rows = _rows(arguments.out)
        same = [there for there in rows if all(row[key] == there.get(key) for key in (*_KEY, "recipe"))]
        if any(
            "failed" not in there and not (arguments.again and _is_stale(there, options, arguments.shares))
            for there in same
        ):
            continue
        rows = [there for there in rows if there not in same]
        start = time.time()
        if start + longest > end:
            print("no time is left for another row; the same command goes on", flush=True)
            return
        try:
            preflight(options)
            # Before any session of a row, and once: later the clocks are what the row before left.
            device = device or describe_device(provider, 0) | {"cpu_in_use_by_others": cpu_in_use_by_others()}
            row |= _timed(_folder(arguments, network), options, precision, batch)
        except InputError as error:
            row["failed"] = str(error)
        row["seconds"] = round(time.time() - start, 1)
        row["device"] = device
        write_whole(arguments.out, json.dumps({"rows": [*rows, row]}, indent=1) + "\n")
        longest = max(longest, time.time() - start)
        print(_said(row), flush=True)


def _rows(out: Path) -> list[dict[str, Any]]:
    """Rows that are there."""
    rows: list[dict[str, Any]] = json.loads(out.read_text(encoding="utf-8"))["rows"] if out.is_file() else []
    return rows


def _is_stale(row: dict[str, Any], options: BenchOptions, shares: list[float]) -> bool:
    """Whether a row lacks a share, or was timed with other options of the provider than it would be now."""
    if not {f"pruneport {share:g}" for share in shares} <= {*row["networks"], *row["left_out"]}:
        return True
    types = frozenset({"float16"}) if row["precision"] == "fp16" else frozenset[str]()
    used = row["settings"]["provider_options"]
    # A folder of a process that has ended is another each time.
    return any(
        used.get(name) != value for name, value in provider_options(options, types).items() if "path" not in name
    )


def _timed(folder: Path, options: BenchOptions, precision: str, batch: int) -> dict[str, Any]:
    """All networks of a folder in the same rounds."""
    entries = files_of(folder)
    there = [entry for entry in entries if entry.failed is None]
    sessions: dict[str, Session] = {}
    for entry in there:
        print(f"opening {entry.name} on {options.provider} at batch {batch} in {precision}", flush=True)
        sessions[entry.name] = open_session(entry.file(folder, precision), options, batch=batch)
    values = sessions[DENSE].inputs.drawn(batch, SEED)
    runs = {name: session.bind(*values) for name, session in sessions.items()}
    warm_up(runs.values(), options)
    throttle = ThrottleWatch(options.provider, options.device)
    turns = take_turns(runs, options.repeats, options, throttle.look)
    after = sample_device(options.provider, options.device) | throttle.reasons()
    return {
        "networks": {entry.name: _figures(entry, turns, there, batch) for entry in there},
        "left_out": {entry.name: entry.failed for entry in entries if entry.failed is not None},
        "at_end": after,
        "rounds": len(turns.samples[DENSE]) // turns.block,
        "runs_per_round": turns.block,
        "settings": sessions[DENSE].settings,
        "versions": {**latency_versions(), **(gpu_library_versions() if options.provider != "cpu" else {})},
    }


def _figures(entry: Entry, turns: Turns, there: list[Entry], batch: int) -> dict[str, Any]:
    """Latency, and how many times as fast as the dense network and as the recipe at the same share."""
    times = {name: [sample.wall_ms for sample in samples] for name, samples in turns.samples.items()}
    latency = asdict(summarise(times[entry.name], batch))
    del latency["samples_ms"]
    figures: dict[str, Any] = {"macs": entry.macs, "macs_kept": round(entry.macs_kept, 4), **latency}
    recipe = entry.name.replace("pruneport ", "torch-pruning ")
    for over, name in (("dense", DENSE), ("torch-pruning", recipe)):
        if name != entry.name and name in times:
            speedup = asdict(paired_speedup(times[name], times[entry.name], seed=SEED, block=turns.block))
            figures[f"speedup over {over}"] = speedup
    if entry.name != DENSE:
        # 1 where latency falls as the multiply-accumulates do.
        figures["share of the reduction"] = round(figures["speedup over dense"]["ratio"] * entry.macs_kept, 4)
    return figures


def _said(row: dict[str, Any]) -> str:
    """A row as text."""
    what = f"{row['network']} {row['provider']} {row['precision']} batch {row['batch']}"
    what += " CUDA graph" if row["cuda_graph"] else ""
    if "failed" in row:
        return f"{what}: {row['failed'].splitlines()[0]}"
    lines = [what]
    for name, figures in row["networks"].items():
        speedup = figures.get("speedup over dense")
        ratio = f" {speedup['ratio']:.2f}x ({speedup['low']:.2f}-{speedup['high']:.2f})" if speedup else ""
        lines.append(f"  {name:20} {figures['macs_kept']:.3f} of the MACs, {figures['p50_ms']:.3f} ms{ratio}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
