"""Accuracy against latency: one mark for each network in each precision."""

from __future__ import annotations

from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from pruneport.bench.report.svg import DENSE, INK, KEPT, inline_svg, quiet, styled, width_inches, write
from pruneport.documents import Json
from pruneport.export.card.words import milliseconds

__all__ = ["Mark", "precision_marks", "precision_plot"]

_COLOURS = {"dense": DENSE, "pruned": KEPT}
_UP = 7  # points
_SHAPES = {"fp32": "o", "fp16": "D", "int8": "s"}


class Mark(NamedTuple):
    """A network in a precision: median latency at the smallest batch size, and how often it is right, or decides as
    fp32 where no labels were given.
    """

    network: str
    precision: str
    latency_ms: float
    share: float
    measure: str
    batch: int


def precision_marks(verify: Json | None, bench: Json | None, *, trained: bool = True) -> list[Mark]:
    """The marks of a plot; none where latency or shares are not known for two precisions at least."""
    records = [record for record in (verify or {}).get("precisions") or () if record["inputs"] != "seeded"]
    if not bench or not records:
        return []
    key = "top1" if trained and all(record["top1"] is not None for record in records) else "agreement"
    measure = "top-1 accuracy" if key == "top1" else "same first choice as fp32"
    entry = min(bench["batches"], key=lambda one: int(one["batch"]))
    times = {"fp32": entry} | {others["precision"]: others for others in entry.get("precisions", ())}
    marks = [
        Mark(
            network=record["network"],
            precision=record["precision"],
            latency_ms=float(times[record["precision"]][record["network"]]["p50_ms"]),
            share=float(record[key]),
            measure=measure,
            batch=int(entry["batch"]),
        )
        for record in records
        if record["precision"] in times and record["network"] in _COLOURS and record[key] is not None
    ]
    return marks if len({mark.precision for mark in marks}) > 1 else []


def precision_plot(marks: list[Mark], *, narrow: bool = False) -> str:
    """Draw them: further left is faster, further up is better.

    Args:
        marks: At least two.
        narrow: For a screen of 400 pixels.

    Returns:
        An ``<svg>`` element.
    """
    with styled():
        figure = Figure(figsize=(width_inches(narrow), 2.6), layout="constrained")
        axes = figure.add_subplot(facecolor="none")
        for mark in marks:
            colour, shape = _COLOURS[mark.network], _SHAPES.get(mark.precision, "o")
            axes.plot([mark.latency_ms], [mark.share], shape, color=colour, markersize=6, clip_on=False)
            up = _UP if mark.network == "dense" else -_UP  # so that marks of the two hide each other's names less
            write(axes, mark.precision, mark.latency_ms, mark.share, points_up=up, color=INK, size=6.5)
        axes.set_xlim(0, 1.15 * max(mark.latency_ms for mark in marks))
        low, high = min(mark.share for mark in marks), max(mark.share for mark in marks)
        room = max(0.01, 0.15 * (high - low))
        axes.set_ylim(low - room, min(1, high + room))
        digits = 0 if high - low > 0.1 else 1
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.{digits}%}"))
        axes.set_xlabel(f"milliseconds per batch of {marks[0].batch}, median")
        axes.set_ylabel(marks[0].measure)
        quiet(axes)
        axes.grid(axis="y")
        handles = [
            Line2D([], [], color=colour, linewidth=0, marker="o", markersize=6, label=name)
            for name, colour in _COLOURS.items()
        ]
        figure.legend(handles=handles, loc="outside upper left", ncols=2)
        said = "; ".join(
            f"{mark.network} {mark.precision}, {milliseconds(mark.latency_ms)} ms, {mark.share:.1%}" for mark in marks
        )
        return inline_svg(figure, "precisions", f"{marks[0].measure} against latency: {said}")
