"""The plot of ``bench/experiments/latency_target.py``: top-1 against measured latency, one panel a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pruneport.bench.experiments.plots.panels import Look, Point, draw_panels, network_panels

__all__ = ["draw_latency"]

_LOOKS = {  # by kind
    "latency": Look("latency is the target", "#14688c", "o"),
    "flops": Look("multiply-accumulates are, at the same latency", "#c2571a", "D"),
}


def draw_latency(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the plot.

    Args:
        rows: As ``bench/experiments/latency_target.py`` writes them.
        path: An .svg or .png file.
    """
    rows = [row for row in rows if row["kind"] in _LOOKS]
    panels = network_panels(
        rows,
        _LOOKS,
        kind_of=lambda row: row["kind"],
        point_of=lambda row: Point(share=row["measured"], top1=row["top1"], low=row["low"], high=row["high"]),
    )
    draw_panels(panels, "measured latency, share of dense", path, xlim=(0, 1))
