"""The plot of ``bench/experiments/depth.py``: top-1 against latency, one panel for a network and a batch size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pruneport.bench.experiments.plots.panels import Line, Panel, Point, draw_panels

__all__ = ["draw_depth"]

_LINES = {  # way: label, colour, marker
    "width": ("narrower layers", "#14688c", "o"),
    "depth": ("fewer branches", "#c2571a", "D"),
    "both": ("both", "#1f2a33", "s"),
}


def draw_depth(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the plot.

    Args:
        rows: As ``bench/experiments/depth.py`` writes them.
        path: An .svg or .png file.
    """
    rows = [row for row in rows if "latency" in row]  # others are out of reach
    pairs = sorted({(row["network"], int(batch)) for row in rows for batch in row["latency"]})
    panels = [
        _panel(f"{network}, batch {batch}", str(batch), [row for row in rows if row["network"] == network])
        for network, batch in pairs
    ]
    draw_panels(panels, "measured latency, share of dense", path)


def _panel(title: str, batch: str, rows: Sequence[Mapping[str, Any]]) -> Panel:
    """One network's rows at one batch size."""
    lines = [
        Line(
            label=label,
            colour=colour,
            marker=marker,
            points=[
                Point(share=timed["share"], top1=row["top1"], low=timed["low"], high=timed["high"])
                for row in rows
                if row["way"] == way and (timed := row["latency"].get(batch))
            ],
        )
        for way, (label, colour, marker) in _LINES.items()
    ]
    return Panel(title=title, dense_top1=rows[0]["dense_top1"], lines=lines)
