"""The plot of ``bench/experiments/accuracy.py``: top-1 against multiply-accumulates kept, one panel a network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pruneport.bench.experiments.plots.panels import Look, Point, draw_panels, network_panels

__all__ = ["draw_accuracy"]

_LOOKS = {  # by inputs, criterion, ranking, recovery
    ("images", "block-hessian", "sensitivity", "reconstruct"): Look(
        "block-hessian, sensitivity, reconstruct", "#14688c", "o"
    ),
    ("images", "block-hessian", "sensitivity", "imitate"): Look("the same, then imitate", "#0b3954", "P"),
    ("synthetic", "block-hessian", "sensitivity", "imitate"): Look(
        "the same without images, then imitate", "#7f2d04", "X"
    ),
    ("synthetic", "block-hessian", "sensitivity", "data-free"): Look("the same without images", "#c2571a", "D"),
    ("images", "l1", "uniform", "reconstruct"): Look("l1, uniform, reconstruct", "#6a9fb8", "s"),
    ("images", "l1", "uniform", "bn"): Look("l1, uniform, bn", "#7b8791", "^"),
    ("images", "l1", "uniform", "none"): Look("l1, uniform: the plain recipe", "#1f2a33", "x"),
}


def draw_accuracy(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the plot; a network's rows of other test images than most of its rows have are left out of it.

    Args:
        rows: As ``bench/experiments/accuracy.py`` writes them.
        path: An .svg or .png file.
    """
    counts: dict[str, Counter[int]] = {}
    for row in rows:
        counts.setdefault(row["network"], Counter())[row["test_images"]] += 1
    panels = network_panels(
        [row for row in rows if row["test_images"] == counts[row["network"]].most_common(1)[0][0]],
        _LOOKS,
        kind_of=lambda row: (row["inputs"], row["criterion"], row["ranking"], row["recovery"]),
        point_of=lambda row: Point(share=row["macs_kept"], top1=row["top1"]),
    )
    draw_panels(panels, "multiply-accumulates kept", path)
