"""The plot of ``bench/experiments/accuracy.py``: top-1 against multiply-accumulates kept, one panel a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pruneport.bench.experiments.plots.panels import Line, Panel, Point, draw_panels

__all__ = ["draw_accuracy"]

_LINES = {  # inputs, criterion, ranking, recovery: label, colour, marker
    ("images", "block-hessian", "sensitivity", "reconstruct"): (
        "block-hessian, sensitivity, reconstruct",
        "#14688c",
        "o",
    ),
    ("images", "block-hessian", "sensitivity", "imitate"): ("the same, then imitate", "#0b3954", "P"),
    ("synthetic", "block-hessian", "sensitivity", "imitate"): ("the same without images, then imitate", "#7f2d04", "X"),
    ("synthetic", "block-hessian", "sensitivity", "data-free"): ("the same without images", "#c2571a", "D"),
    ("images", "l1", "uniform", "reconstruct"): ("l1, uniform, reconstruct", "#6a9fb8", "s"),
    ("images", "l1", "uniform", "bn"): ("l1, uniform, bn", "#7b8791", "^"),
    ("images", "l1", "uniform", "none"): ("l1, uniform: the plain recipe", "#1f2a33", "x"),
}


def draw_accuracy(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the plot.

    Args:
        rows: As ``bench/experiments/accuracy.py`` writes them.
        path: An .svg or .png file.
    """
    networks = dict.fromkeys(row["network"] for row in rows)
    panels = [_panel(network, [row for row in rows if row["network"] == network]) for network in networks]
    draw_panels(panels, "multiply-accumulates kept", path)


def _panel(network: str, rows: Sequence[Mapping[str, Any]]) -> Panel:
    """One network's rows."""
    lines = [
        Line(
            label=label,
            colour=colour,
            marker=marker,
            points=[
                Point(share=row["macs_kept"], top1=row["top1"])
                for row in rows
                if (row["inputs"], row["criterion"], row["ranking"], row["recovery"]) == recipe
            ],
        )
        for recipe, (label, colour, marker) in _LINES.items()
    ]
    return Panel(title=network, dense_top1=rows[0]["dense_top1"], lines=lines)
