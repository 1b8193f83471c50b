"""From widths near a target to those that are nearest to it: bisection, then single steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pruneport.arrays import FloatArray

__all__ = ["Measure", "bisect", "polish", "refine"]

Measure = Callable[[FloatArray], float]
"""What the target counts, of kept widths."""

_BISECTIONS = 40
_PAIRED_STEPS = 128  # with more single steps than this, no two are tried together


def bisect(share: Callable[[float], float], target: float) -> float:
    """Return the smallest ratio at which the rounded allocation costs at most the target."""
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if share(middle) <= target else (middle, high)
    return high


def refine(
    rounded: Callable[[float], FloatArray],
    ratio: float,
    asked: FloatArray,
    measure: Measure,
    target: float,
    free: Sequence[int],
) -> FloatArray:
    """Walk from the allocation just above the target to the one below it; stop where it is nearest."""
    below = rounded(ratio)
    above = rounded(max(0.0, ratio - 2.0 ** (1 - _BISECTIONS)))
    if measure(above) <= target:
        above = rounded(0.0)
    overdue = sorted((i for i in free if above[i] != below[i]), key=lambda i: asked[i] - above[i])
    best, current = above, above
    for index in overdue:
        current = current.copy()
        current[index] = below[index]
        if abs(measure(current) - target) < abs(measure(best) - target):
            best = current
    return best if abs(measure(best) - target) <= abs(measure(below) - target) else below


def polish(
    kept: FloatArray, measure: Measure, target: float, tolerance: float, widths: dict[int, FloatArray]
) -> FloatArray:
    """Where the cost is still out of tolerance, step one group or a pair of groups up or down, best first."""
    gap = abs(measure(kept) - target)
    while gap > tolerance:
        steps = [(index, width) for index in widths for width in _neighbours(widths[index], kept[index])]
        moves = [[step] for step in steps]
        if len(steps) <= _PAIRED_STEPS:
            moves += [[one, two] for one in steps for two in steps if one[0] < two[0]]
        candidates = []
        for move in moves:
            moved = kept.copy()
            for index, width in move:
                moved[index] = width
            candidates.append((abs(measure(moved) - target), moved))
        best, nearest = min(candidates, key=lambda candidate: candidate[0])
        if best >= gap:
            break
        gap, kept = best, nearest
    return kept


def _neighbours(widths: FloatArray, current: float) -> FloatArray:
    """The possible widths just below and just above the current one."""
    position = int(np.searchsorted(widths, current))
    return widths[[index for index in (position - 1, position + 1) if 0 <= index < len(widths)]]
