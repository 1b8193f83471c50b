"""The curves of ``bench/experiments/training.py``: top-1 against training FLOPs, one a start, and what they say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from pruneport.export.card.intervals import share_interval

__all__ = ["curves", "draw_training", "interval", "needed"]

_LINES = {  # start: label, colour, marker
    "imitated": ("recovered by imitation", "#0b3954", "P"),
    "recovered": ("recovered in closed form", "#14688c", "o"),
    "plain": ("l1, uniform: the plain recipe", "#c2571a", "D"),
}


def curves(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[dict[str, float]]]:
    """Each start's points by rising budget: epochs, training FLOPs and top-1 with its interval, the seeds' mean."""
    found: dict[str, dict[float, list[Mapping[str, Any]]]] = {}
    for row in rows:
        found.setdefault(row["start"], {}).setdefault(row["epochs"], []).append(row)
    return {
        start: [
            {
                "epochs": epochs,
                "flops": sum(row["flops"] for row in same) / len(same),
                "top1": (top1 := sum(row["top1"] for row in same) / len(same)),
                **interval(top1, same[0]["test_images"]),
            }
            for epochs, same in sorted(budgets.items())
        ]
        for start, budgets in found.items()
    }


def needed(
    lines: Mapping[str, Sequence[Mapping[str, float]]], spent: Mapping[str, float], accuracies: Iterable[float]
) -> list[dict[str, Any]]:
    """What training each start needs to reach an accuracy, in epochs and FLOPs: 0 where it has it from the first.

    Between the first budget that reaches it and the one before, a straight line is taken. None: no budget reaches it.

    Args:
        lines: As ``curves`` makes them.
        spent: FLOPs of each start's imitation, which ``flops_with_imitation`` has too.
        accuracies: Shares of the test images.
    """
    return [
        {"top1": wanted} | {start: _reached(points, wanted, spent.get(start, 0.0)) for start, points in lines.items()}
        for wanted in accuracies
    ]


def _reached(points: Sequence[Mapping[str, float]], wanted: float, spent: float) -> dict[str, float] | None:
    place = next((place for place, point in enumerate(points) if point["top1"] >= wanted), None)
    if place is None:
        return None
    after, before = points[place], points[max(0, place - 1)]
    rise = after["top1"] - before["top1"]
    share = (wanted - before["top1"]) / rise if rise else 1.0
    epochs, flops = (before[name] + share * (after[name] - before[name]) for name in ("epochs", "flops"))
    return {"epochs": round(epochs, 3), "flops": flops, "flops_with_imitation": flops + spent}


def interval(top1: float, images: int) -> dict[str, float]:
    """Both ends of the accuracy's 95 % interval."""
    ends = share_interval(round(top1 * images), images)
    return {"top1_low": round(ends.low, 4), "top1_high": round(ends.high, 4)}


def draw_training(
    curves: Mapping[str, Sequence[Mapping[str, float]]],
    dense_top1: float,
    path: Path,
    spent: Mapping[str, float] | None = None,
) -> None:
    """Write the plot.

    Args:
        curves: Points of each start, as ``curves`` makes them.
        dense_top1: The dense network's accuracy, as a share.
        path: An .svg or .png file.
        spent: FLOPs that starts took before training; the same curve is drawn with them, too.
    """
    figure = Figure(figsize=(5.6, 4.2), layout="constrained")
    axes = figure.add_subplot()
    least = min((point["flops"] for points in curves.values() for point in points if point["flops"]), default=1.0)
    for start, (label, colour, marker) in _LINES.items():
        points = curves.get(start, ())
        if not points:
            continue
        flops, top1 = [point["flops"] for point in points], [100 * point["top1"] for point in points]
        below = [100 * (point["top1"] - point["top1_low"]) for point in points]
        above = [100 * (point["top1_high"] - point["top1"]) for point in points]
        axes.errorbar(
            flops, top1, yerr=(below, above), color=colour, marker=marker, markersize=4, capsize=2, label=label
        )
        if before := (spent or {}).get(start):
            label = "imitation's own FLOPs counted, too"
            axes.plot([before + each for each in flops], top1, color=colour, linestyle="--", linewidth=1, label=label)
    axes.axhline(100 * dense_top1, color="#7b8791", linestyle=":", label="dense")
    axes.set_xscale("symlog", linthresh=least)
    axes.set_xlim(left=0)
    axes.set(xlabel="training FLOPs", ylabel="top-1, %")
    axes.grid(color="#dde3e7", linewidth=0.6)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path)
