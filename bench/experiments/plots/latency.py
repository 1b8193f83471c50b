"""The plot of ``bench/experiments/latency_target.py``: top-1 against measured latency, one panel a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pruneport.bench.experiments.plots.panels import Line, Panel, Point, draw_panels

__all__ = ["draw_latency"]

_LINES = {  # kind: label, colour, marker
    "latency": ("latency is the target", "#14688c", "o"),
    "flops": ("multiply-accumulates are, at the same latency", "#c2571a", "D"),
}


def draw_latency(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the plot.

    Args:
        rows: As ``bench/experiments/latency_target.py`` writes them.
        path: An .svg or .png file.
    """
    rows = [row for row in rows if row["kind"] in _LINES]
    networks = dict.fromkeys(row["network"] for row in rows)
    panels = [_panel(network, [row for row in rows if row["network"] == network]) for network in networks]
    draw_panels(panels, "measured latency, share of dense", path, xlim=(0, 1))


def _panel(network: str, rows: Sequence[Mapping[str, Any]]) -> Panel:
    """One network's rows."""
    lines = [
        Line(
            label=label,
            colour=colour,
            marker=marker,
            points=[
                Point(share=row["measured"], top1=row["top1"], low=row["low"], high=row["high"])
                for row in rows
                if row["kind"] == kind
            ],
        )
        for kind, (label, colour, marker) in _LINES.items()
    ]
    return Panel(title=network, dense_top1=rows[0]["dense_top1"], lines=lines)
