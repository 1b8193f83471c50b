"""Where everything in the drawing of the coupled groups stands.

A row is a block, with its layers from left to right and the groups between them as pills. Groups that go on from row to
row, residual streams above all, are lines at the left, with a dot in each row that has them.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pruneport.bench.report.graph_colours import group_colours, tint
from pruneport.bench.report.graph_content import DrawnLayer, GraphContent
from pruneport.bench.report.graph_rows import Lane, Row, find_chains, find_lanes, find_rows
from pruneport.bench.report.graph_scene import HEIGHT, MARGIN, Dot, Line, Scene, Shape, text_width
from pruneport.bench.report.graph_texts import GraphTexts, counted, end_of
from pruneport.bench.report.svg import DENSE, INK, MUTED, PAGE
from pruneport.export.card.words import clean, shorten

__all__ = ["PILL_INK", "arrange"]

PILL_INK = "#101820"  # on tints, which stay light in a dark page
_SMALL = 10.0  # of the text in pills
_LINE, _BETWEEN = 23.0, 5.0  # from line to line of shapes; what lies between rows more than that
_GAP, _CHAIN_GAP = 7.0, 22.0  # between shapes; between chains of them
_WIDEST = 800.0  # as wide as the report's column is on a screen of 1200 pixels
_MOST_PILLS = 3  # side by side; more groups than that are one pill
_MOST_LAYERS = 60  # of a row
_MOST_LANES, _LANE, _NARROW_LANE = 48, 11.0, 7.0
_NAME_CHARS, _BLOCK_CHARS, _REASON_CHARS = 18, 28, 115


def arrange(content: GraphContent) -> Scene:
    """Give everything that is drawn its place."""
    rows = find_rows(content.layers)
    lanes = find_lanes(rows)
    colours = group_colours(len(content.groups), [row.groups for row in rows])
    return _Arrangement(content, rows, lanes, colours).scene()


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A layer's box or a pill, before it has a place."""

    text: str
    width: float
    layer: DrawnLayer | None = None
    groups: tuple[int, ...] = ()


class _Arrangement:
    """Fills a scene from top to bottom."""

    def __init__(
        self, content: GraphContent, rows: Sequence[Row], lanes: Sequence[Lane], colours: Sequence[str]
    ) -> None:
        self.content, self.rows, self.colours = content, rows, colours
        self.lanes = [lane for lane in lanes if lane.place < _MOST_LANES]
        self.without_line = len(lanes) - len(self.lanes)
        self.texts = GraphTexts(content)
        places = 1 + max((lane.place for lane in self.lanes), default=-1)
        self.pitch = _LANE if places <= _MOST_LANES / 4 else _NARROW_LANE
        self.labels_at = MARGIN + 4 + places * self.pitch + (6 if places else 0)
        names = [end_of(row.block, _BLOCK_CHARS) for row in rows]
        self.blocks_at = self.labels_at + max((text_width(name) for name in names if name), default=0) + 10
        self.drawn = Scene()

    def scene(self) -> Scene:
        """All of it."""
        scene, summary = self.drawn, self.texts.summary()
        title = shorten(self.content.title, 80)
        scene.label = f"{title}: {summary}"
        end = scene.write(MARGIN, 18, title, bold=True)
        scene.write(end + 10, 18, summary, ink=MUTED)
        y, centres = self._legend(40) + 30, []
        for row in self.rows:
            centres.append(y)
            y = self._row(row, y) + _LINE + _BETWEEN
        self._lanes(centres)
        self._reasons(y + 4)
        return scene

    def _legend(self, y: float) -> float:
        """What the signs mean; returns the middle of its last line."""
        scene, colour = self.drawn, self.colours[0] if self.colours else MUTED
        if self.content.pruned:
            entries = [("40/64", "a pruned group: units kept of all", False)]
        else:
            entries = [("64", "a prunable group: how many units it has", False)]
        if self.texts.reasons:
            entries.append(("64 a", "a group that stays dense: reason a, below", True))
        x = MARGIN
        for text, meaning, hollow in entries:
            x = self._pill(x, y, text, colour, hollow, "") + 6
            x = scene.write(x, y, meaning, ink=MUTED, size=_SMALL) + 18
        x = self._box(x, y, "conv1", "") + 6
        x = scene.write(x, y, "a layer", ink=MUTED, size=_SMALL) + 18
        if self.lanes:
            y += 20
            x = MARGIN + 4
            for place, ring in enumerate((False, True, False)):
                scene.dots.append(Dot(x=x + 16 * place, y=y, colour=colour, ring=ring))
            count = len(scene.dots)
            scene.lines += [Line(start=count - 3 + step, end=count - 2 + step, colour=colour) for step in range(2)]
            meaning = "a group that several rows share, such as a residual stream: ● made in the row, ○ only read there"
            if self.without_line:
                meaning += f"; {self.without_line} more without a line"
            scene.write(x + 42, y, meaning, ink=MUTED, size=_SMALL)
        return y

    def _row(self, row: Row, y: float) -> float:
        """One block; returns the middle of its last line."""
        scene = self.drawn
        if row.folded:
            scene.write(self.labels_at, y, f"⋮  {shorten(row.folded, 110)}", ink=MUTED)
            return y
        if row.block:
            scene.write(self.labels_at, y, end_of(row.block, _BLOCK_CHARS), tip=clean(row.block))
        more = len(row.layers) - _MOST_LAYERS
        for place, line in enumerate(self._lines(replace(row, layers=row.layers[:_MOST_LAYERS]))):
            y += _LINE if place else 0
            x = self.blocks_at + (14 if place else 0)
            for parts, gap, linked in line:
                if linked:
                    self._link(x, x + gap, y)
                x += gap
                for part in parts:
                    self._part(part, x, y)
                    x += part.width + 2
                x -= 2
        if more > 0:
            y += _LINE
            scene.write(self.blocks_at + 14, y, f"{more} more layers of this block are not drawn", ink=MUTED)
        return y

    def _lines(self, row: Row) -> list[list[tuple[list[_Part], float, bool]]]:
        """The row's items line by line, each with the gap before it and whether a line crosses that gap."""
        room = _WIDEST - self.blocks_at
        lines: list[list[tuple[list[_Part], float, bool]]] = [[]]
        left = room
        for chain in find_chains(row):
            items = [list(self._parts(row, item)) for item in chain]
            widths = [sum(part.width for part in parts) + 2 * (len(parts) - 1) for parts in items]
            if lines[-1] and sum(widths) + _GAP * (len(widths) - 1) + _CHAIN_GAP > left:
                lines.append([])
                left = room - 14
            for place, (parts, width) in enumerate(zip(items, widths, strict=True)):
                # The groups behind the last layer are not left alone in a line.
                with_last = width + (_GAP + widths[-1] if place == len(widths) - 2 else 0)
                gap = 0.0 if not lines[-1] else _GAP if place else _CHAIN_GAP
                if lines[-1] and gap + with_last > left:
                    lines.append([])
                    left, gap = room - 14, 0.0
                lines[-1].append((parts, gap, place > 0 and gap > 0))
                left -= gap + width
        return lines

    def _part(self, part: _Part, x: float, y: float) -> None:
        if part.layer is not None:
            self._box(x, y, part.text, self.texts.layer_tip(part.layer))
        elif len(part.groups) == 1:
            group = part.groups[0]
            self._pill(
                x, y, part.text, self.colours[group], self.content.groups[group].dense, self.texts.group_tip(group)
            )
        else:
            hollow = all(self.content.groups[group].dense for group in part.groups)
            self._pill(x, y, part.text, MUTED, hollow, self.texts.groups_tip(part.groups))

    def _parts(self, row: Row, item: DrawnLayer | tuple[int, ...]) -> Iterator[_Part]:
        """What a layer, or groups between layers, are drawn as."""
        if isinstance(item, DrawnLayer):
            text = end_of(row.shown_name(item), _NAME_CHARS)
            yield _Part(text=text, width=_box_width(text), layer=item)
        elif len(item) <= _MOST_PILLS:
            for group in item:
                text = self.texts.of_group(self.content.groups[group])
                yield _Part(text=text, width=_pill_width(text), groups=(group,))
        else:
            text = self.texts.of_groups(item)
            yield _Part(text=text, width=_pill_width(text), groups=item)

    def _pill(self, x: float, y: float, text: str, colour: str, hollow: bool, tip: str) -> float:
        width = _pill_width(text)
        self.drawn.put(
            Shape(
                x=x + width / 2, y=y, width=width, text=text, tip=tip, edge=colour, size=_SMALL,
                fill=PAGE if hollow else tint(colour), ink=INK if hollow else PILL_INK, radius=HEIGHT / 2,
            )
        )  # fmt: skip
        return x + width

    def _box(self, x: float, y: float, text: str, tip: str) -> float:
        width = _box_width(text)
        self.drawn.put(Shape(x=x + width / 2, y=y, width=width, text=text, tip=tip, edge=DENSE, fill=PAGE, radius=0))
        return x + width

    def _link(self, start: float, end: float, y: float) -> None:
        """A short line between shapes of a chain."""
        scene = self.drawn
        scene.dots += [Dot(x=x, y=y, colour=MUTED, radius=0) for x in (start, end)]
        scene.lines.append(Line(start=len(scene.dots) - 2, end=len(scene.dots) - 1, colour=MUTED, width=1))

    def _lanes(self, centres: Sequence[float]) -> None:
        scene = self.drawn
        for lane in self.lanes:
            colour, tip = self.colours[lane.group], self.texts.group_tip(lane.group)
            x = MARGIN + 4 + lane.place * self.pitch
            first = len(scene.dots)
            radius = 3.6 if self.pitch == _LANE else 2.8
            for row in lane.rows:
                ring = lane.group not in self.rows[row].made
                scene.dots.append(Dot(x=x, y=centres[row], colour=colour, ring=ring, tip=tip, radius=radius))
            scene.lines += [
                Line(start=dot, end=dot + 1, colour=colour) for dot in range(first, first + len(lane.rows) - 1)
            ]

    def _reasons(self, y: float) -> None:
        """Why groups stay dense, below all."""
        if not self.texts.reasons:
            return
        scene = self.drawn
        scene.write(MARGIN, y, "Left dense because:" if self.content.pruned else "Not prunable because:", ink=MUTED)
        for letter, reason in self.texts.why_dense():
            for place, line in enumerate(textwrap.wrap(reason, _REASON_CHARS)[:4]):
                y += 17
                if not place:
                    scene.write(MARGIN + 8, y, letter, bold=True)
                scene.write(MARGIN + 24, y, line)
        if left := len(self.texts.reasons) - len(self.texts.letters):
            scene.write(MARGIN + 24, y + 17, f"and {counted(left, 'other reason')}", ink=MUTED)


def _box_width(text: str) -> float:
    return text_width(text) + 8


def _pill_width(text: str) -> float:
    return text_width(text, _SMALL) + 12
