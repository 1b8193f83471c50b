"""The widths a group may have, and the units that it keeps at one of them."""

from __future__ import annotations

import math

import numpy as np

from pruneport.arrays import FloatArray
from pruneport.compress.graph.groups import Group
from pruneport.compress.options import PruneOptions

__all__ = ["Scores", "choose_units", "possible_widths", "width_step"]

Scores = FloatArray
"""One number a unit of a group, (units,); the highest are kept."""


def width_step(group: Group, options: PruneOptions) -> int:
    """Widths, in units, are multiples of this."""
    return math.lcm(options.round_to // math.gcd(options.round_to, group.span), group.blocks)


def possible_widths(group: Group, options: PruneOptions) -> FloatArray:
    """Widths the group may have, ascending: multiples of the step from its floor up, and the dense width."""
    step = width_step(group, options)
    floor = max(step, math.ceil(group.width * (1 - options.max_pruning_ratio) / step - 1e-9) * step)
    return np.array([*range(floor, group.width, step), group.width], dtype=np.float64)


def choose_units(group: Group, scores: Scores, kept: int) -> tuple[int, ...]:
    """The ``kept`` highest-scored units, ascending; the same count from each of the group's blocks."""
    runs = scores.reshape(group.blocks, -1)
    best = np.argsort(-runs, axis=1, kind="stable")[:, : kept // group.blocks]
    chosen = best + np.arange(group.blocks)[:, None] * runs.shape[1]
    return tuple(sorted(int(unit) for unit in chosen.flat))
