"""The plot of ``bench/experiments/latency_target.py``: top-1 against measured latency, one panel a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

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
    networks = list(dict.fromkeys(row["network"] for row in rows))
    figure = Figure(figsize=(3.1 * max(2, len(networks)), 3.6), layout="constrained")
    for number, network in enumerate(networks, start=1):
        axes = figure.add_subplot(1, len(networks), number)
        own = [row for row in rows if row["network"] == network]
        for kind, (label, colour, marker) in _LINES.items():
            found = sorted((row for row in own if row["kind"] == kind), key=lambda row: float(row["measured"]))
            shares = [row["measured"] for row in found]
            below = [row["measured"] - row["low"] for row in found]
            above = [row["high"] - row["measured"] for row in found]
            top1 = [100 * row["top1"] for row in found]
            axes.errorbar(
                shares, top1, xerr=(below, above), color=colour, marker=marker, markersize=4, capsize=2, label=label
            )
        axes.axhline(100 * own[0]["dense_top1"], color="#7b8791", linestyle=":", label="dense")
        axes.set(title=network, xlabel="measured latency, share of dense", xlim=(0, 1), ylim=(0, 100))
        axes.grid(color="#dde3e7", linewidth=0.6)
        if number == 1:
            axes.set_ylabel("top-1, %")
            handles = axes.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.savefig(path)
