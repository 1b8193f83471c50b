"""Plots as inline SVG, in one style.

The text in them is real text. Every colour is a CSS variable with a fallback, so that a page can restyle the
plots for a dark scheme, and every id carries a hash of the plot, so that several can stand on one page.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pruneport.export.card.words import clean

__all__ = [
    "DENSE",
    "GRID",
    "INK",
    "KEPT",
    "MUTED",
    "PAGE",
    "REMOVED",
    "for_screens",
    "inline_svg",
    "page_svg",
    "plain_svg",
    "quiet",
    "styled",
    "width_inches",
    "write",
]

_NAMESPACE = "http://www.w3.org/2000/svg"
_WIDE_INCHES, _NARROW_INCHES = 7.2, 4.0

# Light-scheme colours; each becomes var(--plot-NAME, COLOUR) in the SVG, so no two may be equal.
INK, MUTED, GRID = "#1f2a33", "#5d6b76", "#dde3e7"
PAGE = "#ffffff"
KEPT, REMOVED, DENSE = "#14688c", "#b9d3df", "#7b8791"
_VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    GRID: "grid",
    PAGE: "page",
    KEPT: "kept",
    REMOVED: "removed",
    DENSE: "dense",
}

_STYLE: Any = {  # matplotlib's type for it lists every key
    "svg.fonttype": "none",
    "svg.hashsalt": "pruneport",
    "text.parse_math": False,
    "font.size": 7.5,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "figure.labelsize": "medium",  # as the axes' labels
    "axes.edgecolor": GRID,
    "xtick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.color": GRID,
    "ytick.labelcolor": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
}


@contextmanager
def styled() -> Iterator[None]:
    """Apply our style to what is drawn inside, and keep quiet about glyphs: the browser brings the fonts."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()  # a user's own matplotlibrc must not change the plots
        matplotlib.rcParams.update(_STYLE)
        warnings.filterwarnings("ignore", message=r".*Glyph .* missing from font")
        warnings.filterwarnings("ignore", message=r".*Matplotlib currently does not support .* natively")
        yield


def width_inches(narrow: bool) -> float:
    """Return how wide a figure is drawn: text keeps its size, so that a narrow one can be read on a telephone."""
    return _NARROW_INCHES if narrow else _WIDE_INCHES


def for_screens(draw: Callable[[bool], str]) -> str:
    """Return a plot drawn wide and narrow; the page's style shows the one that fits.

    Args:
        draw: Returns the ``<svg>`` element, narrow or not.
    """
    return f'<div class="at-wide">{draw(False)}</div><div class="at-narrow">{draw(True)}</div>'


def inline_svg(figure: Figure, name: str, label: str) -> str:
    """Render a figure without its size, which the page gives; see ``page_svg``."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    root = page_svg(buffer.getvalue(), name, label)
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    return ElementTree.tostring(root, encoding="unicode")


def page_svg(content: bytes, name: str, label: str) -> ElementTree.Element:
    """An ``<svg>`` element without metadata and page-wide style; labelled, its ids prefixed, its colours the page's."""
    prefix = f"{name}-{hashlib.sha256(content).hexdigest()[:8]}-"
    root = plain_svg(content, label)
    for element in root.iter():
        for key, value in element.attrib.items():
            element.set(key, _restyle(key, value, prefix))
    root.set("class", "plot")
    return root


def plain_svg(content: bytes, label: str) -> ElementTree.Element:
    """An ``<svg>`` element without metadata, page-wide style and prefixes of names; labelled."""
    root = ElementTree.fromstring(content)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.partition("}")[2] or element.tag
        element.attrib = {key.partition("}")[2] or key: value for key, value in element.attrib.items()}
    root.attrib.pop("version", None)
    root.attrib |= {"xmlns": _NAMESPACE, "role": "img", "aria-label": clean(label)}
    return root


def quiet(axes: Axes) -> None:
    """Leave only the left spine and light vertical lines."""
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.tick_params(length=0)
    axes.grid(axis="x")


def write(axes: Axes, text: str, x: float, y: float, *, points_up: float = 0, **style: Any) -> None:
    """Write text a little to the right of a point."""
    axes.annotate(text, (x, y), (4, points_up), textcoords="offset points", va="center_baseline", **style)


def _restyle(key: str, value: str, prefix: str) -> str:
    """The value of an attribute, with ids of the plot's own and colours of the page."""
    if key == "id":
        return prefix + value
    if key == "href":
        return value.replace("#", f"#{prefix}")
    if key == "clip-path":
        return value.replace("url(#", f"url(#{prefix}")
    if key == "style":
        for colour, name in _VARIABLES.items():
            value = value.replace(colour, f"var(--plot-{name}, {colour})")
    return value
