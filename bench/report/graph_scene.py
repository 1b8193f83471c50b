"""A drawing as shapes with places, in pixels: what Graphviz and matplotlib both draw."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextToPath

from pruneport.bench.report.svg import INK

__all__ = ["HEIGHT", "MARGIN", "SIZE", "Dot", "Line", "Scene", "Shape", "text_width"]

MARGIN = 10.0  # around all
HEIGHT, SIZE = 17.0, 11.0  # of a shape, and of the text


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
    height: float = HEIGHT
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
        self.width = max(self.width, shape.x + shape.width / 2 + MARGIN)
        self.height = max(self.height, shape.y + shape.height / 2 + MARGIN)

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
