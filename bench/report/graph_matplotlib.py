"""The drawing by matplotlib, where Graphviz is not installed: the same shapes in the same places."""

from __future__ import annotations

import io

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, FancyBboxPatch

from pruneport.bench.report.graph_scene import Dot, Scene, Shape
from pruneport.bench.report.svg import PAGE, styled

__all__ = ["draw_by_matplotlib"]

_POINTS = 72 / 96  # in a pixel


def draw_by_matplotlib(scene: Scene, suffix: str, dots_per_inch: int) -> bytes:
    """Draw a scene; the arguments are those of ``draw_by_graphviz``."""
    picture = io.BytesIO()
    with styled():
        figure = Figure(figsize=(scene.width / 96, scene.height / 96), facecolor=PAGE)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xlim(0, scene.width)
        axes.set_ylim(scene.height, 0)
        axes.set_axis_off()
        for line in scene.lines:
            start, end = scene.dots[line.start], scene.dots[line.end]
            axes.add_line(
                Line2D([start.x, end.x], [start.y, end.y], color=line.colour, linewidth=line.width * _POINTS, zorder=1)
            )
        for number, dot in enumerate(scene.dots):
            _draw_dot(axes, dot, f"dot{number}")
        for number, shape in enumerate(scene.shapes):
            _draw_shape(axes, shape, f"shape{number}")
        metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(suffix)
        figure.savefig(picture, format=suffix, dpi=dots_per_inch, metadata=metadata)
    return picture.getvalue()


def _draw_dot(axes: Axes, dot: Dot, name: str) -> None:
    if dot.radius:
        fill = PAGE if dot.ring else dot.colour
        circle = Circle((dot.x, dot.y), dot.radius, facecolor=fill, edgecolor=dot.colour, linewidth=1.4, zorder=2)
        circle.set_gid(name)
        axes.add_patch(circle)


def _draw_shape(axes: Axes, shape: Shape, name: str) -> None:
    left, top = shape.x - shape.width / 2, shape.y - shape.height / 2
    if shape.edge:
        box = FancyBboxPatch(
            (left, top),
            shape.width,
            shape.height,
            boxstyle=f"round,pad=0,rounding_size={shape.radius}" if shape.radius else "square,pad=0",
            facecolor=shape.fill,
            edgecolor=shape.edge,
            linewidth=0.9,
            zorder=2,
        )
        box.set_gid(name)
        axes.add_patch(box)
    text = axes.text(
        left if shape.left else shape.x,
        shape.y,
        shape.text,
        ha="left" if shape.left else "center",
        va="center_baseline",
        color=shape.ink,
        fontsize=shape.size * _POINTS,
        fontweight="bold" if shape.bold else "normal",
        zorder=3,
    )
    text.set_gid(f"{name}-text" if shape.edge else name)
