"""Latency at equal accuracy, of rows as the script writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pruneport.bench.experiments.latencies.equal_accuracy import compare, latency_at
from pruneport.bench.experiments.plots.equal_accuracy import draw_equal_accuracy

_LINE = [(1.0, 0.8), (0.8, 0.6), (0.6, 0.1)]


@pytest.mark.parametrize(
    ("top1", "share"),
    [(0.7, 0.9), (0.6, 0.8), (0.35, 0.7), (0.1, 0.6), (0.8, 1.0), (0.9, 1.0), (0.05, None)],
)
def test_the_latency_at_a_top1_lies_between_two_networks(top1: float, share: float | None) -> None:
    assert latency_at(top1, _LINE) == share


def test_the_fastest_that_is_so_accurate_counts() -> None:
    assert latency_at(0.6, [*_LINE, (0.7, 0.6)]) == 0.7, "as accurate, and faster"
    assert latency_at(0.5, [*_LINE, (0.5, 0.6)]) is None, "a faster one would do"
    assert latency_at(0.9, [*_LINE, (1.1, 0.7)]) == 1.0, "pruned ones can be slower than dense"


def _row(recipe: str, recovery: str, target: float, top1: float, share: float) -> dict[str, Any]:
    timed = {"share": share, "low": share - 0.01, "high": share + 0.01, "dense_ms": 2.0}
    keys = {"network": "resnet20", "recipe": recipe, "recovery": recovery, "target": target}
    return {**keys, "top1": top1, "dense_top1": 0.8, "latency": {"fp32": {"1": timed}}}


def test_ours_are_compared_with_each_uniform_line(tmp_path: Path) -> None:
    rows = [
        _row("uniform", "none", 0.9, 0.4, 0.9),
        _row("uniform", "bn", 0.9, 0.7, 0.9),
        _row("ours", "reconstruct", 0.6, 0.6, 0.7),
    ]
    plain, renewed = compare(rows)
    assert (plain["against"], plain["uniform_share"], plain["ratio"]) == ("none", 0.95, round(0.95 / 0.7, 3))
    assert (renewed["against"], renewed["uniform_share"], renewed["ratio"]) == ("bn", None, None)
    draw_equal_accuracy(rows, tmp_path / "plot.svg")
    assert "ours, reconstructed" in (tmp_path / "plot.svg").read_text()
