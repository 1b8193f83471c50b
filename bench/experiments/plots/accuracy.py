"""The plot of ``bench/experiments/accuracy.py``: top-1 against multiply-accumulates kept, one panel a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

__all__ = ["draw_accuracy"]

_BEST = "block-hessian, sensitivity, reconstruct"
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
    networks = list(dict.fromkeys(row["network"] for row in rows))
    figure = Figure(figsize=(3.1 * len(networks), 3.6), layout="constrained")
    for number, network in enumerate(networks, start=1):
        axes = figure.add_subplot(1, len(networks), number)
        own = [row for row in rows if row["network"] == network]
        for key, (label, colour, marker) in _LINES.items():
            points = sorted(
                (row["macs_kept"], 100 * row["top1"])
                for row in own
                if (row["inputs"], row["criterion"], row["ranking"], row["recovery"]) == key
            )
            if points:
                axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=4, label=label)
        axes.axhline(100 * own[0]["dense_top1"], color="#7b8791", linestyle=":", label="dense")
        axes.set(title=network, xlabel="multiply-accumulates kept", ylim=(0, 100))
        axes.grid(color="#dde3e7", linewidth=0.6)
        if number == 1:
            axes.set_ylabel("top-1, %")
            handles = axes.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.savefig(path)
