"""The plot of ``bench/experiments/depth.py``: top-1 against latency, one panel for a network and a batch size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pruneport.bench.experiments.plots.panels import Look, Point, draw_panels, panel_of

__all__ = ["draw_depth"]

_LOOKS = {  # by way
    "width": Look("narrower layers", "#14688c", "o"),
    "depth": Look("fewer branches", "#c2571a", "D"),
    "both": Look("both", "#1f2a33", "s"),
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
        panel_of(
            f"{network}, batch {batch}",
            [row for row in rows if row["network"] == network and str(batch) in row["latency"]],
            _LOOKS,
            kind_of=lambda row: row["way"],
            point_of=partial(_point, batch=str(batch)),
        )
        for network, batch in pairs
    ]
    draw_panels(panels, "measured latency, share of dense", path)


def _point(row: Mapping[str, Any], batch: str) -> Point:
    """What was measured of a network at a batch size."""
    timed = row["latency"][batch]
    return Point(share=timed["share"], top1=row["top1"], low=timed["low"], high=timed["high"])
