"""The drawing of the coupled groups as shapes with places: what Graphviz and matplotlib both draw.

A row is a block, with its layers from left to right and the groups between them as pills. Groups that go on from row to
row, residual streams above all, are lines at the left, with a dot in each row that has them.
"""

from __future__ import annotations

import string
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextToPath

from pruneport.bench.report.graph_colours import group_colours, tint
from pruneport.bench.report.graph_content import DrawnGroup, DrawnLayer, GraphContent
from pruneport.bench.report.graph_rows import Lane, Row, find_lanes, find_rows
from pruneport.bench.report.svg import DENSE, INK, MUTED, PAGE
from pruneport.export.card.summary import clean, shorten

__all__ = ["PILL_INK", "Dot", "Line", "Scene", "Shape", "arrange", "text_width"]

PILL_INK = "#101820"  # on tints, which stay light in a dark page
SIZE, SMALL = 11.0, 10.0  # of the text, in pixels

_MARGIN, _LINE, _BETWEEN = 10.0, 23.0, 5.0  # around all; a line of shapes; what lies between rows more than that
_HEIGHT, _GAP, _CHAIN_GAP = 17.0, 7.0, 22.0  # of a shape; between shapes; between chains of them
_WIDEST = 800.0  # as wide as the report's column is on a screen of 1200 pixels
_MOST_PILLS = 3  # side by side; more groups than that are one pill
_MOST_LANES, _LANE, _NARROW_LANE = 48, 11.0, 7.0
_NAME_CHARS, _BLOCK_CHARS, _REASON_CHARS, _MOST_REASONS = 18, 28, 115, 12
_TIP_GROUPS = 12


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A text in a box whose centre is at ``x``, ``y``; with no ``edge`` and no ``fill`` it is a text alone.

    Attributes:
        tip: What a pointer that rests on it is told.
        left: Whether the text begins at the left end, or stands in the middle.
    """

    x: float
    y: float
    width: float
    text: str
    height: float = _HEIGHT
    tip: str = ""
    ink: str = INK
    edge: str = ""
    fill: str = ""
    left: bool = False
    bold: bool = False
    size: float = SIZE
    radius: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A dot on a group's line, or a ring where the row makes none of its channels; an invisible one ends a line."""

    x: float
    y: float
    colour: str
    ring: bool = False
    tip: str = ""
    radius: float = 3.6


@dataclass(frozen=True, kw_only=True)
class Line:
    """A straight line between two dots, by their numbers."""

    start: int
    end: int
    colour: str
    width: float = 2.4


@dataclass(kw_only=True)
class Scene:
    """Everything that is drawn, in pixels from the upper left corner."""

    width: float = 0.0
    height: float = 0.0
    label: str = ""
    shapes: list[Shape] = field(default_factory=list)
    dots: list[Dot] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)

    @property
    def tips(self) -> dict[str, str]:
        """By the ids that both ways of drawing give: what a pointer that rests there is told."""
        tips = {f"shape{number}": shape.tip for number, shape in enumerate(self.shapes)}
        tips |= {f"dot{number}": dot.tip for number, dot in enumerate(self.dots)}
        return {name: tip for name, tip in tips.items() if tip}

    def put(self, shape: Shape) -> None:
        """Add a shape, and make room for it."""
        self.shapes.append(shape)
        self.width = max(self.width, shape.x + shape.width / 2 + _MARGIN)
        self.height = max(self.height, shape.y + shape.height / 2 + _MARGIN)

    def write(self, x: float, y: float, text: str, **style: object) -> float:
        """Add a text that begins at ``x``; return where it ends."""
        size, bold = float(style.get("size", SIZE)), bool(style.get("bold"))  # type: ignore[arg-type]
        width = text_width(text, size, bold)
        self.put(Shape(x=x + width / 2, y=y, width=width, text=text, left=True, **style))  # type: ignore[arg-type]
        return x + width


@lru_cache(maxsize=4096)
def text_width(text: str, size: float = SIZE, bold: bool = False) -> float:
    """How wide a text is at most, in pixels: in DejaVu Sans, which is wider than what browsers have."""
    font = FontProperties(family="DejaVu Sans", size=size, weight="bold" if bold else "normal")
    known = "".join(character if ord(character) < 0x2E80 else "MM" for character in text)
    width, _, _ = TextToPath().get_text_width_height_descent(known, font, ismath=False)
    return float(width) + 2


def arrange(content: GraphContent) -> Scene:
    """Give everything that is drawn its place."""
    rows = find_rows(content.layers)
    lanes = [lane for lane in find_lanes(rows) if lane.place < _MOST_LANES]
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
        self.content, self.rows, self.lanes, self.colours = content, rows, lanes, colours
        reasons = Counter(group.reason for group in content.groups if group.dense)
        common = [reason for reason, _ in reasons.most_common(_MOST_REASONS)]
        self.letters = dict(zip(common, string.ascii_lowercase, strict=False))
        self.reasons = reasons
        places = 1 + max((lane.place for lane in lanes), default=-1)
        self.pitch = _LANE if places <= _MOST_LANES / 4 else _NARROW_LANE
        self.labels_at = _MARGIN + 4 + places * self.pitch + (6 if places else 0)
        names = [_end_of(row.block, _BLOCK_CHARS) for row in rows]
        self.blocks_at = self.labels_at + max((text_width(name) for name in names if name), default=0) + 10
        self.drawn = Scene()

    def scene(self) -> Scene:
        """All of it."""
        content, scene = self.content, self.drawn
        dense = sum(group.dense for group in content.groups)
        many = len(content.groups) - dense
        done = f"{many} pruned, {dense} left dense" if content.pruned else f"{many} prunable, {dense} not"
        title = shorten(content.title, 80)
        counted = (
            f"{_counted(len(content.groups), 'coupled group')} ({done}) of {_counted(len(content.layers), 'layer')}"
        )
        scene.label = f"{title}: {counted}"
        end = scene.write(_MARGIN, 18, title, bold=True)
        scene.write(end + 10, 18, counted, ink=MUTED)
        y = self._legend(40)
        first = y + 30
        y, centres = first, []
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
        if self.reasons:
            entries.append(("64 a", "a group that stays dense: reason a, below", True))
        x = _MARGIN
        for text, meaning, hollow in entries:
            x = self._pill(x, y, text, colour, hollow, "") + 6
            x = scene.write(x, y, meaning, ink=MUTED, size=SMALL) + 18
        x = self._box(x, y, "conv1", "") + 6
        x = scene.write(x, y, "a layer", ink=MUTED, size=SMALL) + 18
        if self.lanes:
            y += 20
            x = _MARGIN + 4
            for place, ring in enumerate((False, True, False)):
                scene.dots.append(Dot(x=x + 16 * place, y=y, colour=colour, ring=ring))
            count = len(scene.dots)
            scene.lines += [Line(start=count - 3 + step, end=count - 2 + step, colour=colour) for step in range(2)]
            meaning = "a group that several rows share, such as a residual stream: ● made in the row, ○ only read there"
            scene.write(x + 42, y, meaning, ink=MUTED, size=SMALL)
        return y

    def _row(self, row: Row, y: float) -> float:
        """One block; returns the middle of its last line."""
        scene = self.drawn
        if row.folded:
            scene.write(self.labels_at, y, f"⋮  {shorten(row.folded, 110)}", ink=MUTED)
            return y
        if row.block:
            scene.write(self.labels_at, y, _end_of(row.block, _BLOCK_CHARS), tip=clean(row.block))
        for place, line in enumerate(self._lines(row)):
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
        return y

    def _lines(self, row: Row) -> list[list[tuple[list[_Part], float, bool]]]:
        """The row's items line by line, each with the gap before it and whether a line crosses that gap."""
        room = _WIDEST - self.blocks_at
        lines: list[list[tuple[list[_Part], float, bool]]] = [[]]
        left = room
        for chain in _chains(row):
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
            self._box(x, y, part.text, self._layer_tip(part.layer))
        elif len(part.groups) == 1:
            group = part.groups[0]
            self._pill(x, y, part.text, self.colours[group], self.content.groups[group].dense, self._group_tip(group))
        else:
            hollow = all(self.content.groups[group].dense for group in part.groups)
            self._pill(x, y, part.text, MUTED, hollow, self._groups_tip(part.groups))

    def _parts(self, row: Row, item: DrawnLayer | tuple[int, ...]) -> Iterator[_Part]:
        """What a layer, or groups between layers, are drawn as."""
        if isinstance(item, DrawnLayer):
            text = _end_of(row.shown_name(item), _NAME_CHARS)
            yield _Part(text=text, width=_box_width(text), layer=item)
        elif len(item) <= _MOST_PILLS:
            for group in item:
                text = self._group_text(self.content.groups[group])
                yield _Part(text=text, width=_pill_width(text), groups=(group,))
        else:
            groups = [self.content.groups[group] for group in item]
            total = sum(group.width for group in groups)
            kept = f"{sum(group.kept or 0 for group in groups)}/" if self.content.pruned else ""
            text = f"{len(item)} groups: {kept}{total}"
            yield _Part(text=text, width=_pill_width(text), groups=item)

    def _group_text(self, group: DrawnGroup) -> str:
        if group.dense:
            return f"{group.width} {self.letters.get(group.reason, '')}".strip()
        return f"{group.width}" if group.kept is None else f"{group.kept}/{group.width}"

    def _pill(self, x: float, y: float, text: str, colour: str, hollow: bool, tip: str) -> float:
        width = _pill_width(text)
        self.drawn.put(
            Shape(
                x=x + width / 2, y=y, width=width, text=text, tip=tip, edge=colour, size=SMALL,
                fill=PAGE if hollow else tint(colour), ink=INK if hollow else PILL_INK, radius=_HEIGHT / 2,
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
            colour, tip = self.colours[lane.group], self._group_tip(lane.group)
            x = _MARGIN + 4 + lane.place * self.pitch
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
        if not self.reasons:
            return
        scene = self.drawn
        scene.write(_MARGIN, y, "Left dense because:" if self.content.pruned else "Not prunable because:", ink=MUTED)
        for reason, letter in self.letters.items():
            text = f"{_plain(reason) or 'no reason was recorded'} ({_counted(self.reasons[reason], 'group')})"
            for place, line in enumerate(textwrap.wrap(text, _REASON_CHARS)[:4]):
                y += 17
                if not place:
                    scene.write(_MARGIN + 8, y, letter, bold=True)
                scene.write(_MARGIN + 24, y, line)
        if left := len(self.reasons) - len(self.letters):
            scene.write(_MARGIN + 24, y + 17, f"and {_counted(left, 'other reason')}", ink=MUTED)

    def _group_tip(self, number: int) -> str:
        group = self.content.groups[number]
        roles = {
            "filters": "inside a block",
            "stream": "residual stream, or what feeds one",
            "representation": "read by the output layer",
            "output": "leaves the network",
        }
        if group.kept is None:
            state = f"{group.width} units, {'not prunable' if group.dense else 'prunable'}"
        else:
            state = f"{group.width} units, left dense" if group.dense else f"{group.kept} of {group.width} units kept"
        reason = f"; {_plain(group.reason)}" if group.reason else ""
        return f"group {shorten(group.name, 120)}: {state}; {roles[group.role]}{reason}"

    def _groups_tip(self, numbers: Sequence[int]) -> str:
        shown = "; ".join(
            f"{shorten(group.name, 60)} {self._group_text(group)}"
            for group in (self.content.groups[number] for number in numbers[:_TIP_GROUPS])
        )
        more = len(numbers) - _TIP_GROUPS
        return f"{len(numbers)} groups: {shown}" + (f"; and {more} more" if more > 0 else "")

    def _layer_tip(self, layer: DrawnLayer) -> str:
        reads, makes = (
            " + ".join(self._group_text(self.content.groups[group]) for group in groups[:_TIP_GROUPS])
            for groups in (layer.reads, layer.makes)
        )
        if layer.reads == layer.makes:
            return f"{clean(layer.name)}: {'entries' if layer.parameter else 'channels'} {reads}"
        return f"{clean(layer.name)}: in {reads or 'the input'}, out {makes or 'not pruned'}"


def _chains(row: Row) -> list[list[DrawnLayer | tuple[int, ...]]]:
    """A row's layers, and between them the groups that one makes and the next reads.

    A chain ends where a layer reads something else than what the one before it made. Groups stand before the layer that
    reads them: a norm follows the layer that made its channels.
    """
    chains: list[list[DrawnLayer | tuple[int, ...]]] = [[]]
    current: tuple[int, ...] = ()
    shown = True
    for layer in row.layers:
        goes_on = bool(layer.reads) and layer.reads == current
        if not shown and (not goes_on or layer.reads != layer.makes):
            chains[-1].append(current)
            shown = True
        if not goes_on:
            chains.append([layer.reads] if layer.reads else [])
            shown = True
        chains[-1].append(layer)
        if layer.reads != layer.makes:
            shown = not layer.makes
        current = layer.makes
    if not shown:
        chains[-1].append(current)
    return [chain for chain in chains if chain]


def _end_of(name: str, chars: int) -> str:
    """A long name without the modules that it begins with: what tells it from its neighbours stands at its end."""
    text = clean(name)
    while len(text) > chars and "." in text:
        text = text.partition(".")[2]
    cut = "" if text == clean(name) else "…"
    return shorten(cut + text, chars)


def _plain(reason: str) -> str:
    """A reason without the signs that mark the names of options."""
    return clean(reason).replace("`", "")


def _box_width(text: str) -> float:
    return text_width(text) + 8


def _pill_width(text: str) -> float:
    return text_width(text, SMALL) + 12


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
