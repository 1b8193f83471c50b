"""Plots of a study: errors against budgets with their spread over seeds, and the frontier of every task."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from pruneport.bench.report.svg import DENSE, INK, KEPT, MUTED, inline_svg, quiet, styled, width_inches, write
from pruneport.bench.transfer.analysis.records import MeanCurve, NetworkSummary, TaskCurve

__all__ = ["frontier_plot", "stream_plot", "tasks_plot"]


_COLUMNS = 2
_ROW_INCHES = 2.4
_APART = 1.2  # in FLOPs; trainings of one budget end within a step of it
_STYLES = {"filters": "-", "channels": ":"}


def stream_plot(network: NetworkSummary, *, narrow: bool = False) -> str:
    """Draw the mean error over the tasks against the budget, a line for every way of pruning.

    Args:
        network: An entry of the summary's ``networks``.
        narrow: For a screen of 400 pixels.

    Returns:
        An ``<svg>`` element.
    """
    with styled():
        below = 0.17 * len(network.stream) if narrow else 0
        figure = Figure(figsize=(width_inches(narrow), 3.6 + below), layout="constrained")
        axes = figure.add_subplot(facecolor="none")
        _draw_curves(axes, network.stream)
        figure.legend(loc="outside lower left" if narrow else "outside right upper")
        axes.set_ylabel("error, mean over the tasks")
        axes.set_xlabel("budget, training FLOPs")
        label = f"{network.name}: error against the training budget, mean over {', '.join(network.tasks)}"
        return inline_svg(figure, "stream", label)


def tasks_plot(network: NetworkSummary, *, narrow: bool = False) -> str:
    """Draw the same for every task alone."""
    tasks = network.tasks
    with styled():
        figure, panels = _panels(len(tasks), narrow)
        for axes, task in zip(panels, tasks, strict=True):
            _draw_curves(axes, [entry for entry in network.curves if entry.task == task])
            axes.set_title(task, loc="left", fontsize=8.5, fontweight="bold")
        _name_axes(figure)
        return inline_svg(figure, "tasks", f"{network.name}: error against the training budget, task by task")


def frontier_plot(network: NetworkSummary, *, narrow: bool = False) -> str:
    """Draw, for every task, the least error reached with so much compute, and which share of the MACs reached it."""
    tasks = network.tasks
    with styled():
        figure, panels = _panels(len(tasks), narrow)
        for axes, task in zip(panels, tasks, strict=True):
            points = network.frontier[task]
            flops, errors = [point.flops for point in points], [point.error for point in points]
            axes.step(flops, errors, where="post", color=KEPT, linewidth=1.2)
            axes.scatter(flops, errors, s=8, color=KEPT)
            for point, after in zip(points, [*points[1:], None], strict=True):
                if after is None or after.flops > _APART * point.flops:  # else its label would be below the next
                    write(axes, _share(point.kept), point.flops, point.error, points_up=5, size=6, color=INK)
            _scales(axes)
            axes.set_title(task, loc="left", fontsize=8.5, fontweight="bold")
        _name_axes(figure)
        return inline_svg(figure, "frontier", f"{network.name}: least error by training FLOPs, with the share kept")


def _panels(count: int, narrow: bool) -> tuple[Figure, list[Axes]]:
    """A figure of that many plots, side by side or, where it is narrow, below each other."""
    columns = 1 if narrow else _COLUMNS
    rows = -(-count // columns)
    figure = Figure(figsize=(width_inches(narrow), _ROW_INCHES * rows), layout="constrained")
    return figure, [figure.add_subplot(rows, columns, index + 1, facecolor="none") for index in range(count)]


def _name_axes(figure: Figure) -> None:
    figure.supxlabel("training FLOPs", color=MUTED)
    figure.supylabel("error", color=MUTED)


def _draw_curves(axes: Axes, entries: Sequence[MeanCurve | TaskCurve]) -> None:
    """Draw the error by budget, with its spread over the seeds."""
    for entry in entries:
        points = entry.points
        if not points:
            continue
        budgets = [point.budget for point in points]
        errors = [point.error for point in points]
        dense = entry.kept == 1
        colour, strength = (DENSE, 1.0) if dense else (KEPT, 0.35 + 0.65 * (1 - entry.kept))
        style = "--" if dense else _STYLES.get(entry.scope, "-")
        name = "dense" if dense else f"{_share(entry.kept)} {entry.scope}, {entry.recipe}"
        axes.plot(budgets, errors, style, color=colour, alpha=strength, lw=1.4, marker="o", ms=2.5, label=name)
        spreads = [math.nan if point.spread is None else point.spread for point in points]  # of one seed: a gap
        low, high = ([error + sign * spread for error, spread in zip(errors, spreads, strict=True)] for sign in (-1, 1))
        axes.fill_between(budgets, low, high, color=colour, alpha=0.1, linewidth=0)
    _scales(axes)


def _scales(axes: Axes) -> None:
    """Budgets on a logarithmic axis, errors as percentages."""
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}".replace("e+", "e")))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    quiet(axes)
    axes.grid(axis="y")


def _share(kept: float) -> str:
    return f"{kept:.0%}"
