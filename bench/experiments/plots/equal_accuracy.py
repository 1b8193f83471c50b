"""The plot of ``latencies/equal_accuracy.py``: top-1 against latency, one panel for a precision and a batch size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pruneport.bench.experiments.plots.panels import Look, Point, draw_panels, panel_of

__all__ = ["draw_equal_accuracy"]

_LOOKS = {  # by recipe and recovery
    "uniform none": Look("uniform", "#7b8791", "v"),
    "uniform bn": Look("uniform, statistics anew", "#c2571a", "D"),
    "ours reconstruct": Look("ours, reconstructed", "#14688c", "o"),
    "ours imitate": Look("ours, imitated", "#1f2a33", "s"),
}


def draw_equal_accuracy(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the plot.

    Args:
        rows: As ``latencies/equal_accuracy.py`` writes them.
        path: An .svg or .png file.
    """
    timed = [(row["network"], *pair) for row in rows for pair in _pairs(row)]
    panels = [
        panel_of(
            f"{network}, {precision}, batch {batch}",
            [row for row in rows if row["network"] == network and (precision, batch) in _pairs(row)],
            _LOOKS,
            kind_of=lambda row: f"{row['recipe']} {row['recovery']}",
            point_of=partial(_point, precision=precision, batch=batch),
        )
        for network, precision, batch in dict.fromkeys(timed)
    ]
    draw_panels(panels, "measured latency, share of dense", path)


def _pairs(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Precisions and batch sizes at which a network was timed."""
    return [(precision, batch) for precision, batches in row["latency"].items() for batch in batches]


def _point(row: Mapping[str, Any], precision: str, batch: str) -> Point:
    """What was measured of a network."""
    timed = row["latency"][precision][batch]
    return Point(share=timed["share"], top1=row["top1"], low=timed["low"], high=timed["high"])
