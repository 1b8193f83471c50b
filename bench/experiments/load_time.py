"""Time of ``pruneport.load`` against building the dense network: ``python bench/experiments/load_time.py``.

Both run in one process, in turn, after one round that is not timed; which goes first alternates. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import pruneport
from pruneport.commands import CompressConfig, compress
from pruneport.models.options import SourceOptions
from pruneport.models.source import build, open_source

__all__ = ["load_time"]


def load_time(source: str, rounds: int) -> dict[str, object]:
    """Compress ``source`` to half its compute, then time loading the bundle and building the dense network."""
    _, record = open_source(SourceOptions(source=source))
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        compress(CompressConfig(source=source, flops=0.5, out=bundle))
        work: dict[str, Callable[[], nn.Module]] = {
            "build_dense": lambda: build(record),
            "load": lambda: pruneport.load(bundle),
        }
        samples_ms: dict[str, list[float]] = {name: [] for name in work}
        for index in range(rounds + 1):
            for name in work if index % 2 == 0 else reversed(work):
                start_ns = time.perf_counter_ns()
                work[name]()
                if index > 0:
                    samples_ms[name].append((time.perf_counter_ns() - start_ns) / 1e6)
    medians_ms = {name: statistics.median(values) for name, values in samples_ms.items()}
    return {
        "source": source,
        "rounds": rounds,
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        **{f"{name}_p50_ms": round(value, 1) for name, value in medians_ms.items()},
        "ratio": round(medians_ms["load"] / medians_ms["build_dense"], 3),
        "samples_ms": samples_ms,
    }


def main() -> None:
    """Print the times of one network as JSON."""
    parser = argparse.ArgumentParser(description="Time loading a bundle against building the dense network.")
    parser.add_argument("--source", default="torchvision:resnet50", help="a library's network")
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds")
    arguments = parser.parse_args()
    print(json.dumps(load_time(arguments.source, arguments.rounds), indent=1))


if __name__ == "__main__":
    main()
