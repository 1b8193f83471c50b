"""The coupled groups of a network, drawn: as a file, and as an element of the report."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from pruneport.bench.report.graph_content import GraphContent
from pruneport.bench.report.graph_graphviz import draw_by_graphviz
from pruneport.bench.report.graph_layout import arrange
from pruneport.bench.report.graph_matplotlib import draw_by_matplotlib
from pruneport.bench.report.graph_scene import Scene
from pruneport.bench.report.svg import page_svg, plain_svg
from pruneport.errors import OutputError
from pruneport.files import check_file, write_whole

__all__ = ["check_graph", "graph_svg", "write_graph"]

_SUFFIXES = (".svg", ".png", ".pdf")
_DOTS_PER_INCH = 192  # of a PNG: two for each pixel of a usual screen
_MOST_PIXELS = 30_000  # of its height: less than what readers of PNG take


def check_graph(path: Path) -> None:
    """Raise an ``OutputError`` where no drawing can be written, before a network is traced for it."""
    check_file(path, "graph", _SUFFIXES)


def write_graph(path: Path, content: GraphContent) -> None:
    """Draw the groups into a file, by Graphviz where it is installed, else by matplotlib; it appears whole or not.

    Args:
        path: As ``check_graph`` takes it.
        content: What to draw.

    Raises:
        InUseError: Another process is writing it.
        OSError: It cannot be written.
        OutputError: There are no groups to draw.
    """
    if not content.groups:
        raise OutputError(f"`graph` {path}: {content.title} has no coupled groups to draw.")
    scene = arrange(content)
    suffix = path.suffix.lower().removeprefix(".")
    drawn = _drawn(scene, suffix)
    if suffix == "svg":
        root = plain_svg(drawn, scene.label)
        _explain(root, scene)
        drawn = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    write_whole(path, drawn)


def graph_svg(content: GraphContent) -> str:
    """Return the drawing as an ``<svg>`` element for a page; an empty string where there are no groups."""
    if not content.groups:
        return ""
    scene = arrange(content)
    drawn = _drawn(scene, "svg")
    root = plain_svg(drawn, scene.label)
    _explain(root, scene)
    for element in root.iter():  # var() is for styles
        colours = [f"{key}: {element.attrib.pop(key)}" for key in ("fill", "stroke") if key in element.attrib]
        if colours:
            element.set("style", "; ".join([*filter(None, [element.get("style")]), *colours]))
    root = page_svg(ElementTree.tostring(root), "graph", scene.label)
    root.set("class", "plot graph")
    return ElementTree.tostring(root, encoding="unicode")


def _drawn(scene: Scene, suffix: str) -> bytes:
    dots_per_inch = min(_DOTS_PER_INCH, int(96 * _MOST_PIXELS / scene.height))
    by_graphviz = draw_by_graphviz(scene, suffix, dots_per_inch)
    return draw_by_matplotlib(scene, suffix, dots_per_inch) if by_graphviz is None else by_graphviz


def _explain(root: ElementTree.Element, scene: Scene) -> None:
    """Give every shape its text for a pointer that rests on it, in place of Graphviz's own names of things."""
    tips = scene.tips
    for element in root.iter():
        for title in element.findall("title"):
            element.remove(title)
        tip = tips.get(element.get("id", "").removesuffix("-text"))
        if tip:
            title = ElementTree.Element("title")
            title.text = tip
            element.insert(0, title)
