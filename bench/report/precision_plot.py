"""Accuracy against latency: one mark for each network in each precision."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from pruneport.bench.report.svg import DENSE, INK, KEPT, MUTED, inline_svg, quiet, styled, width_inches
from pruneport.documents import Json
from pruneport.export.card.words import milliseconds

__all__ = ["Mark", "precision_marks", "precision_plot"]

_COLOURS = {"dense": DENSE, "pruned": KEPT}
_SHAPES = {"fp32": "o", "fp16": "D", "int8": "s"}
_MARK, _TEXT = 6.0, 6.5  # points: sizes of marks and names
_WIDTH = 0.62  # of a character, in sizes of the text; browsers bring their own fonts
_DISTANCES = (1.0, 9.0, 18.0, 28.0)  # points between a mark and its name; from the second on a line leads to it
_SIDES = ((1, 0.6), (1, -0.6), (-1, 0.6), (-1, -0.6), (0, 1), (0, -1), (1, 0), (-1, 0))


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
            axes.plot([mark.latency_ms], [mark.share], shape, color=colour, markersize=_MARK, clip_on=False)
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
        figure.draw_without_rendering()  # from now on it is known where marks are
        _write_names(axes, marks)
        said = "; ".join(
            f"{mark.network} {mark.precision}, {milliseconds(mark.latency_ms)} ms, {mark.share:.1%}" for mark in marks
        )
        return inline_svg(figure, "precisions", f"{marks[0].measure} against latency: {said}")


class _Box(NamedTuple):
    """Left, lower, right and upper end, in points."""

    left: float
    low: float
    right: float
    high: float

    @classmethod
    def around(cls, x: float, y: float, width: float, height: float) -> _Box:
        """With its middle at a place."""
        return cls(x - width / 2, y - height / 2, x + width / 2, y + height / 2)

    def shared(self, other: _Box) -> float:
        """The area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.high, other.high) - max(self.low, other.low)
        return max(0.0, width) * max(0.0, height)

    def outside(self, frame: _Box) -> float:
        """The area that is not in a frame."""
        return (self.right - self.left) * (self.high - self.low) - self.shared(frame)


def _write_names(axes: Axes, marks: Sequence[Mark]) -> None:
    """Write the precision beside each mark: at the nearest place where it hides neither a mark nor another name."""
    points = 72 / axes.figure.dpi
    places = points * axes.transData.transform([(mark.latency_ms, mark.share) for mark in marks])
    frame = _Box(*(points * end for end in axes.get_window_extent().extents))
    taken = [_Box.around(x, y, _MARK + 1, _MARK + 1) for x, y in places]
    for mark, (x, y) in zip(marks, places, strict=True):
        width, height = _WIDTH * _TEXT * len(mark.precision), 1.2 * _TEXT
        best = None
        for distance, (right, up) in itertools.product(_DISTANCES, _SIDES):
            off = (
                right * ((_MARK + width) / 2 + distance),
                up * ((_MARK + height) / 2 + distance),
            )
            box = _Box.around(x + off[0], y + off[1], width, height)
            hidden = sum(box.shared(other) for other in taken) + box.outside(frame)
            if best is None or hidden < best[0]:
                best = hidden, distance, off, box
            if not hidden:
                break
        assert best is not None
        _, distance, off, box = best
        taken.append(box)
        axes.annotate(
            mark.precision,
            (mark.latency_ms, mark.share),
            off,
            textcoords="offset points",
            ha="center",
            va="center",
            color=INK,
            size=_TEXT,
            arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.5} if distance > _DISTANCES[0] else None,
        )
