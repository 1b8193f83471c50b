"""Experiments' plots: what rows say is drawn, each line once in the legend; rows that hold no point are no fault."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest

from pruneport.bench.experiments.plots.accuracy import draw_accuracy
from pruneport.bench.experiments.plots.depth import draw_depth
from pruneport.bench.experiments.plots.latency import draw_latency

_RESULTS = Path(__file__).parents[3] / "bench" / "results"


def words_of(draw: Any, rows: list[dict[str, Any]], path: Path) -> list[str]:
    """All words of a plot."""
    with mpl.rc_context({"svg.fonttype": "none"}):
        draw(rows, path)
    return re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text(encoding="utf-8"))


def rows_of(name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((_RESULTS / f"{name}.json").read_text(encoding="utf-8"))["rows"]
    return rows


@pytest.mark.parametrize(
    ("draw", "name", "expected"),
    [
        (draw_accuracy, "accuracy", {"resnet50_v1", "multiply-accumulates kept", "l1, uniform: the plain recipe"}),
        (draw_latency, "latency_target", {"mobilenet_v2", "latency is the target", "dense"}),
        (draw_depth, "depth", {"resnet50_v1, batch 1", "resnet50_v1, batch 8", "narrower layers", "both", "dense"}),
    ],
)
def test_the_results_in_the_repository_are_drawn(draw: Any, name: str, expected: set[str], tmp_path: Path) -> None:
    words = words_of(draw, rows_of(name), tmp_path / "plot.svg")
    assert expected <= set(words)
    assert [words.count("top-1, %"), words.count("dense")] == [1, 1]


def test_a_line_that_only_a_later_panel_has_is_in_the_legend(tmp_path: Path) -> None:
    rows = rows_of("latency_target")
    first = rows[0]["network"]
    words = words_of(
        draw_latency,
        [row for row in rows if row["network"] != first or row["kind"] == "latency"],
        tmp_path / "plot.svg",
    )
    assert "multiply-accumulates are, at the same latency" in words


def test_rows_without_a_point_draw_nothing(tmp_path: Path) -> None:
    held_out = [row for row in rows_of("latency_target") if row["kind"] == "held-out"]
    draw_latency(held_out, tmp_path / "plot.svg")
    draw_depth([{"network": "digits", "way": "both", "out_of_reach": "too far"}], tmp_path / "plot.svg")
    assert held_out
    assert not (tmp_path / "plot.svg").exists()
