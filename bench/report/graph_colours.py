"""Colours of groups: hues that colour-blind people tell apart, and a shade for each group of a hue."""

from __future__ import annotations

import colorsys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

__all__ = ["HUES", "group_colours", "tint"]

HUES = ("#0068ad", "#c68300", "#00936b", "#b85f95", "#b54000", "#3a97d0")
"""Those of Okabe and Ito (Color Universal Design, 2008) without the yellow, darkened so that thin lines are seen on a
light and on a dark page, and so far apart that the orange ones stay two without green or red cones; a test measures it.
"""

_SHADES, _SPREAD = 61, 0.2  # of a hue: so many, over so much of the lightness
_TINT = 0.72  # share of white in a fill: dark text stays readable on it


def group_colours(count: int, neighbours: Iterable[Sequence[int]]) -> list[str]:
    """A colour for each of ``count`` groups, no two the same up to some three hundred.

    Args:
        count: Of groups.
        neighbours: The groups that are seen together, row by row: they get different hues, as far as these go.
    """
    rows_of: dict[int, list[int]] = defaultdict(list)
    for row, groups in enumerate(neighbours):
        for group in groups:
            rows_of[group].append(row)
    taken: dict[int, set[int]] = defaultdict(set)
    used: Counter[int] = Counter()
    colours = []
    for group in range(count):
        here = set().union(*(taken[row] for row in rows_of[group]))
        free = [hue for hue in range(len(HUES)) if hue not in here] or range(len(HUES))
        hue = min(free, key=lambda hue: (used[hue], hue))
        colours.append(_shade(HUES[hue], used[hue]))
        used[hue] += 1
        for row in rows_of[group]:
            taken[row].add(hue)
    return colours


def tint(colour: str) -> str:
    """The light fill that goes with a group's colour."""
    return _hex(_TINT + (1 - _TINT) * part for part in _rgb(colour))


def _shade(colour: str, number: int) -> str:
    """The colour in another lightness; numbers near each other get lightnesses far apart."""
    if number == 0:
        return colour
    hue, lightness, saturation = colorsys.rgb_to_hls(*_rgb(colour))
    step = (number * 23) % _SHADES  # 23 and 61 have no common factor: every shade comes once
    return _hex(colorsys.hls_to_rgb(hue, lightness + _SPREAD * (step / _SHADES - 0.5), saturation))


def _rgb(colour: str) -> tuple[float, float, float]:
    red, green, blue = (int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5))
    return red, green, blue


def _hex(parts: Iterable[float]) -> str:
    return "#" + "".join(f"{round(255 * min(1.0, max(0.0, part))):02x}" for part in parts)
