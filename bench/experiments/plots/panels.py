"""Lines of top-1 against a share of the dense network, one panel beside the other, under one legend."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.artist import Artist
from matplotlib.figure import Figure

__all__ = ["Look", "Panel", "Point", "draw_panels", "network_panels", "panel_of"]

_INCHES = 3.1, 3.6  # of a panel
_LEAST_WIDTH = 2  # panels, for the legend's sake
_DENSE, _GRID = "#7b8791", "#dde3e7"

Row = Mapping[str, Any]
"""What an experiment measured of one network."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A network's top-1 and its share of the dense network, with the share's interval where that was measured."""

    share: float
    top1: float
    low: float | None = None
    high: float | None = None


class Look(NamedTuple):
    """How a line looks, and what it is called in the legend."""

    label: str
    colour: str
    marker: str


@dataclass(frozen=True, kw_only=True)
class Line:
    """Networks of one kind; they are drawn by their share."""

    look: Look
    points: Sequence[Point]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Lines of one network, and the top-1 of the dense one."""

    title: str
    dense_top1: float
    lines: Sequence[Line]


def panel_of(
    title: str,
    rows: Sequence[Row],
    looks: Mapping[Any, Look],
    kind_of: Callable[[Row], Any],
    point_of: Callable[[Row], Point],
) -> Panel:
    """One network's rows, a line for each kind.

    Args:
        title: Stands above the panel.
        rows: At least one; each says ``dense_top1``.
        looks: Kind -> how its line looks; rows of other kinds are not drawn.
        kind_of: Gives the kind of a row.
        point_of: Gives its point.
    """
    lines = [
        Line(look=look, points=[point_of(row) for row in rows if kind_of(row) == kind]) for kind, look in looks.items()
    ]
    return Panel(title=title, dense_top1=rows[0]["dense_top1"], lines=lines)


def network_panels(
    rows: Sequence[Row], looks: Mapping[Any, Look], kind_of: Callable[[Row], Any], point_of: Callable[[Row], Point]
) -> list[Panel]:
    """The same of every network in the rows, in their order."""
    networks = dict.fromkeys(row["network"] for row in rows)
    return [
        panel_of(network, [row for row in rows if row["network"] == network], looks, kind_of, point_of)
        for network in networks
    ]


def draw_panels(panels: Sequence[Panel], share: str, path: Path, xlim: tuple[float, float] | None = None) -> None:
    """Write the plot; nothing where there are no panels.

    Args:
        panels: From left to right. Lines of the same label stand in the legend once.
        share: What the points are a share of, for the axis.
        path: An .svg or .png file.
        xlim: The range of shares; by default that of a panel's points.
    """
    if not panels:
        return
    figure = Figure(figsize=(_INCHES[0] * max(_LEAST_WIDTH, len(panels)), _INCHES[1]), layout="constrained")
    legend: dict[str, Artist] = {}
    for number, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), number)
        for line in panel.lines:
            if points := sorted(line.points, key=lambda point: point.share):
                below = [0.0 if point.low is None else point.share - point.low for point in points]
                above = [0.0 if point.high is None else point.high - point.share for point in points]
                axes.errorbar(
                    [point.share for point in points],
                    [100 * point.top1 for point in points],
                    xerr=(below, above) if any(below + above) else None,
                    color=line.look.colour,
                    marker=line.look.marker,
                    markersize=4,
                    capsize=2,
                    label=line.look.label,
                )
        axes.axhline(100 * panel.dense_top1, color=_DENSE, linestyle=":", label="dense")
        axes.set(title=panel.title, xlabel=share, xlim=xlim, ylim=(0, 100))
        axes.grid(color=_GRID, linewidth=0.6)
        if number == 1:
            axes.set_ylabel("top-1, %")
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            legend.setdefault(label, handle)
    figure.legend(list(legend.values()), list(legend), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.savefig(path)
