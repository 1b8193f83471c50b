"""Accuracy against latency and against size, as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pruneport.bench.report.svg import DENSE, INK, KEPT, MUTED, inline_svg, quiet, styled, width_inches, write
from pruneport.bench.sweep.picks import quality_of, speedup_of, unbeaten
from pruneport.bench.sweep.records import Figures, Sweep
from pruneport.export.card.intervals import change_interval, share_interval

__all__ = ["tradeoff_plot"]


class _Mark(NamedTuple):
    """Where a network stands: shares of the dense latency and of the dense file, and quality, with intervals."""

    name: str
    latency: float
    latency_ends: tuple[float, float]
    size: float
    quality: float
    quality_ends: tuple[float, float]
    picked: bool


def tradeoff_plot(sweep: Sweep, *, narrow: bool = False) -> str:
    """Draw every network: accuracy against latency, and against the size of its file; dense stands at 100 %.

    Args:
        sweep: With at least one point that was measured.
        narrow: For a screen of 400 pixels.

    Returns:
        An ``<svg>`` element.
    """
    marks, dense, kind = _marks(sweep)
    first = next(point.figures for point in sweep.points if point.figures is not None)
    batch = first.latencies[0].batch
    with styled():
        figure = Figure(figsize=(width_inches(narrow), 6.2 if narrow else 3.4), layout="constrained")
        rows, columns = (2, 1) if narrow else (1, 2)
        against_latency = figure.add_subplot(rows, columns, 1, facecolor="none")
        against_size = figure.add_subplot(rows, columns, 2, facecolor="none", sharey=against_latency)
        _draw(against_latency, marks, dense, [mark.latency for mark in marks], [mark.latency_ends for mark in marks])
        _draw(against_size, marks, dense, [mark.size for mark in marks], None)
        _draw_limits(against_latency, against_size, sweep, dense)
        against_latency.set_xlabel(f"latency at batch {batch}, share of dense")
        against_size.set_xlabel("size of the ONNX file, share of dense")
        for axes in (against_latency, against_size) if narrow else (against_latency,):
            axes.set_ylabel(kind)
        figure.legend(handles=_legend(sweep), loc="outside upper left", ncols=3 if narrow else 5)
        label = f"{kind} against latency and size: " + "; ".join(
            f"{mark.name} {mark.quality:.1%} at {mark.latency:.0%} of the latency" for mark in marks
        )
        return inline_svg(figure, "tradeoff", label)


def _marks(sweep: Sweep) -> tuple[list[_Mark], float, str]:
    """Every network that was measured, the dense one's quality, and what the quality is."""
    found = [(point, point.figures) for point in sweep.points if point.figures is not None]
    picked = {pick.point for pick in sweep.picks}
    marks = []
    for point, figures in found:
        speedup = speedup_of(figures)
        marks.append(
            _Mark(
                name=point.name,
                latency=1 / speedup.ratio,
                latency_ends=(1 / speedup.high, 1 / speedup.low),
                size=figures.pruned.bytes / figures.dense.bytes,
                quality=quality_of(figures),
                quality_ends=_quality_ends(figures),
                picked=point.name in picked,
            )
        )
    accuracy = found[0][1].accuracy
    if accuracy is not None:
        return marks, accuracy.pruned_onnx if accuracy.dense_torch is None else accuracy.dense_torch, "top-1"
    if found[0][1].agreement is not None:
        return marks, 1.0, "first choices as the dense network's"
    return marks, 1.0, "MACs kept (accuracy was not measured)"


def _quality_ends(figures: Figures) -> tuple[float, float]:
    """A 95 % interval: of the change from dense on the same images, where it is known; of the share itself else."""
    accuracy, quality = figures.accuracy, quality_of(figures)
    if accuracy is not None and accuracy.dense_torch is not None:
        change = change_interval(asdict(accuracy))
        if change is not None:
            return max(0.0, accuracy.dense_torch + change.low), min(1.0, accuracy.dense_torch + change.high)
    counted = accuracy or figures.agreement
    if counted is None:
        return quality, quality
    interval = share_interval(quality * counted.images, counted.images)
    return interval.low, interval.high


def _draw(
    axes: Axes, marks: Sequence[_Mark], dense: float, x: Sequence[float], ends: Sequence[tuple[float, float]] | None
) -> None:
    """Draw the networks at ``x``, shares of dense, with their intervals and the front."""
    places = [*zip(x, (mark.quality for mark in marks), strict=True), (1.0, dense)]
    front = unbeaten(places)
    line = sorted(place for place, stays in zip(places, front, strict=True) if stays)
    axes.plot(*zip(*line, strict=True), color=KEPT, linewidth=0.8, alpha=0.5, zorder=1)
    for index, (place, mark) in enumerate(zip(x, marks, strict=True)):
        colour = KEPT if front[index] else MUTED
        axes.plot([place, place], mark.quality_ends, color=colour, linewidth=1.1, alpha=0.6, zorder=2)
        if ends is not None:
            axes.plot(ends[index], [mark.quality] * 2, color=colour, linewidth=1.1, alpha=0.6, zorder=2)
        face = colour if front[index] else "none"
        axes.plot(place, mark.quality, "o", ms=4.5, color=colour, markerfacecolor=face, zorder=3)
        if mark.picked:
            axes.plot(place, mark.quality, "o", ms=9, color=INK, markerfacecolor="none", mew=1.1, zorder=3)
            write(axes, mark.name, place, mark.quality, points_up=9, color=INK, size=6.5)
    axes.plot(1, dense, "s", ms=5, color=DENSE, zorder=3)
    axes.set_ylim(*_room([dense, *(end for mark in marks for end in mark.quality_ends)]))
    axes.set_xlim(0, max(1.0, *x, *(high for _, high in ends or ())) * 1.06)
    for share in (axes.xaxis, axes.yaxis):
        share.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
    quiet(axes)
    axes.grid(axis="y")


def _room(shares: Sequence[float]) -> tuple[float, float]:
    """From below the lowest share to above the highest, within 0 and 1 but for the marks' own size."""
    margin = 0.06 * max(max(shares) - min(shares), 0.01)
    return max(-margin, min(shares) - margin), min(1 + margin, max(shares) + margin)


def _draw_limits(against_latency: Axes, against_size: Axes, sweep: Sweep, dense: float) -> None:
    """Draw what the user set as a limit."""
    for pick in sweep.picks:
        if pick.limit.rule == "max_drop":
            for axes in (against_latency, against_size):
                axes.axhline(dense - pick.limit.value / 100, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
        else:
            against_latency.axvline(1 / pick.limit.value, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)


def _legend(sweep: Sweep) -> list[Line2D]:
    handles = [
        Line2D([], [], color=DENSE, linewidth=0, marker="s", ms=5, label="dense"),
        Line2D([], [], color=KEPT, linewidth=0.8, marker="o", ms=4.5, label="on the front"),
        Line2D([], [], color=MUTED, linewidth=0, marker="o", ms=4.5, markerfacecolor="none", label="beaten by another"),
    ]
    if any(pick.point for pick in sweep.picks):
        handles.append(
            Line2D([], [], color=INK, linewidth=0, marker="o", ms=8, markerfacecolor="none", label="the pick")
        )
    if sweep.picks:
        handles.append(Line2D([], [], color=INK, linewidth=0.8, linestyle=(0, (4, 3)), label="your limit"))
    return handles
