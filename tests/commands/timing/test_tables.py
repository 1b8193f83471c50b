"""A table of timings that is given is checked against the network, which is traced once for all that needs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pruneport
from pruneport.bench.options import PlaceOptions
from pruneport.bench.timings.staircase import Staircase
from pruneport.bench.timings.table import LatencyTable, TimedWidths, place_of
from pruneport.cli import main
from pruneport.commands.timing.measuring import fingerprint, varied
from pruneport.compress import structure as structure_module
from pruneport.compress.options import PruneOptions
from pruneport.compress.structure import find_structure
from pruneport.models.options import SourceOptions
from pruneport.models.source import open_source

_DIGITS = "pruneport:digits_resnet"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Of a far device, so that nothing is timed here; its timings are what the widths say."""
    network, source = open_source(SourceOptions(source=_DIGITS, weights="DEFAULT"))
    structure = find_structure(network, source, PruneOptions())
    widths = np.array([group.width for group in structure.groups])
    free = np.array([not reason for reason in structure.reasons])
    generator, timings = np.random.default_rng(0), []
    for _ in range(30):
        kept = np.where(free, generator.integers(widths // 4, widths + 1), widths)
        share = 0.1 + 0.9 * float(kept.sum() / widths.sum())
        timings.append(TimedWidths(kept=tuple(map(int, kept)), share=share, low=share, high=share, wall_share=share))
    path = tmp_path / "table.json"
    LatencyTable(
        created="2026-01-01T00:00:00+00:00",
        source=_DIGITS,
        place=replace(place_of(PlaceOptions(threads=1)), device="a far processor"),
        network=fingerprint(structure, source),
        varied=varied(structure),
        staircase=Staircase(convolution=None, depthwise=None),
        clock="thread-cpu",
        dense_ms=1.0,
        timings=tuple(timings),
    ).write(path)
    return path


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch, table: Path) -> list[str]:
    """Grows by an entry with each trace."""
    found: list[str] = []
    trace: Callable[..., Any] = structure_module.dependency_graph

    def counted(*arguments: Any, **named: Any) -> Any:
        found.append("traced")
        return trace(*arguments, **named)

    monkeypatch.setattr(structure_module, "dependency_graph", counted)
    return found


def test_compress_traces_once(traces: list[str], table: Path, tmp_path: Path) -> None:
    asked = ("--latency", "0.7", "--latency-table", str(table), "--round-to", "1", "--recover", "none")
    chosen = ("--criterion", "l1", "--ranking", "uniform")
    assert main(["compress", _DIGITS, "--weights", "DEFAULT", *asked, *chosen, "--out", str(tmp_path / "out")]) == 0
    assert traces == ["traced"]


def test_prune_in_memory_traces_once(traces: list[str], table: Path) -> None:
    network, _ = open_source(SourceOptions(source=_DIGITS, weights="DEFAULT"))
    options: dict[str, Any] = {"criterion": "l1", "ranking": "uniform", "round_to": 1, "recover": "none"}
    pruned = pruneport.prune(network, latency=0.7, latency_table=table, input_shape=(1, 8, 8), **options)
    assert pruned.plan.latency is not None
    assert pruned.plan.request.criterion == "l1"  # as asked, and not as the check's
    assert traces == ["traced"]
