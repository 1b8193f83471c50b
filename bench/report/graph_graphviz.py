"""The drawing by Graphviz: its program ``dot`` is given a text and returns the picture."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

from pruneport.bench.report.graph_scene import Dot, Line, Scene, Shape
from pruneport.bench.report.svg import PAGE

__all__ = ["dot_text", "draw_by_graphviz"]

_SECONDS = 20.0  # it takes a fraction of one
_POINTS = 72 / 96  # in a pixel
_FONT, _BOLD = "Helvetica,Arial,sans-serif", "Helvetica-Bold"


def draw_by_graphviz(scene: Scene, suffix: str, dots_per_inch: int) -> bytes | None:
    """Draw a scene, or return None where Graphviz is not installed, fails, or takes too long.

    Args:
        scene: What to draw.
        suffix: ``svg``, ``png`` or ``pdf``.
        dots_per_inch: Of a PNG.
    """
    program = shutil.which("dot")
    if program is None:
        return None
    # Everything has its place already (-n2), so that Graphviz only draws.
    call = [program, "-Kneato", "-n2", f"-T{suffix}", *([f"-Gdpi={dots_per_inch}"] if suffix == "png" else [])]
    try:
        done = subprocess.run(call, input=dot_text(scene).encode(), capture_output=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 and done.stdout else None


def dot_text(scene: Scene) -> str:
    """A scene in the language of Graphviz; ``Scene.tips`` goes by the ids."""
    return "\n".join(["graph {", *_statements(scene), "}", ""])


def _statements(scene: Scene) -> Iterator[str]:
    yield f'graph [bgcolor="{PAGE}", outputorder=edgesfirst, splines=line, pad=0, charset="UTF-8"];'
    yield f'node [fontname="{_FONT}", fixedsize=true, margin=0];'
    for corner, (x, y) in enumerate(((0.0, 0.0), (scene.width, scene.height))):
        yield f"corner{corner} [shape=point, style=invis, width=0, height=0, {_place(scene, x, y)}];"
    for number, dot in enumerate(scene.dots):
        yield f'dot{number} [id="dot{number}", {_dot(scene, dot)}];'
    for number, shape in enumerate(scene.shapes):
        yield f'shape{number} [id="shape{number}", {_shape(scene, shape)}];'
    for line in scene.lines:
        yield _line(line)


def _dot(scene: Scene, dot: Dot) -> str:
    size = max(0.01, 2 * dot.radius / 96)
    look = f'color="{dot.colour}", fillcolor="{PAGE if dot.ring else dot.colour}", style=filled, penwidth=1.4'
    if not dot.radius:
        look = "style=invis"
    return f'shape=circle, label="", width={size:.4f}, {look}, {_place(scene, dot.x, dot.y)}'


def _shape(scene: Scene, shape: Shape) -> str:
    text = _quoted(shape.text, r"\l" if shape.left else "")
    font = _BOLD if shape.bold else _FONT
    size = f"width={shape.width / 96:.4f}, height={shape.height / 96:.4f}, fontsize={shape.size * _POINTS:.2f}"
    look = "shape=plaintext"
    if shape.edge:
        style = "rounded,filled" if shape.radius else "filled"
        look = f'shape=box, style="{style}", color="{shape.edge}", fillcolor="{shape.fill}", penwidth=1.1'
    place = _place(scene, shape.x, shape.y)
    return f'label={text}, fontname="{font}", fontcolor="{shape.ink}", {size}, {look}, {place}'


def _line(line: Line) -> str:
    return f'dot{line.start} -- dot{line.end} [color="{line.colour}", penwidth={line.width * _POINTS:.2f}];'


def _place(scene: Scene, x: float, y: float) -> str:
    return f'pos="{x * _POINTS:.2f},{(scene.height - y) * _POINTS:.2f}"'


def _quoted(text: str, end: str = "") -> str:
    """A text between quotes, of which Graphviz takes nothing for its own signs."""
    escaped = text.replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}{end}"'
