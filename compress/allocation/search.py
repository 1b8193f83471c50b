"""Allocation: how many units each group keeps, so that the network meets its target."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np

from pruneport.arrays import FloatArray
from pruneport.compress.allocation.approach import Measure, bisect, polish, refine
from pruneport.compress.allocation.cost_model import CostModel
from pruneport.compress.allocation.forms import Price, Quadratic
from pruneport.compress.allocation.knapsack import solve_knapsack
from pruneport.compress.allocation.target import (
    TOLERANCE,
    lowest_measured,
    lowest_share,
    missed_target,
    nothing_prunable,
    out_of_reach,
    target_of,
)
from pruneport.compress.graph.branches import Branch
from pruneport.compress.graph.groups import Group
from pruneport.compress.graph.widths import Scores, possible_widths, width_step
from pruneport.compress.importance.sensitivity import Curve
from pruneport.compress.options import PruneOptions
from pruneport.errors import PruningError, TargetError

__all__ = ["Allocation", "allocate"]

_MOST_OPTIONS = 17  # widths a group offers the solver; the last steps are taken after it
_FEW_GROUPS = 40


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """Units that each group keeps.

    Attributes:
        kept: Units kept, one entry a group; 0 where it goes with a branch that is dropped.
        asked: What the ranking asked for before rounding; the dense width where nothing was asked.
        reasons: Why a group was left dense, or why kept differs from asked; else empty.
        note: A sentence where the target is missed by more than 1 % of dense (of the prunable filters for a ratio),
            else None.
    """

    kept: tuple[int, ...]
    asked: tuple[float, ...]
    reasons: tuple[str, ...]
    note: str | None


def allocate(
    groups: Sequence[Group],
    scores: Sequence[Scores],
    cost: CostModel,
    options: PruneOptions,
    dense_reasons: Sequence[str],
    curves: Sequence[Curve | None] = (),
    wider: Callable[[], Mapping[str, float]] = dict,
    branches: Mapping[Branch, float] = MappingProxyType({}),
) -> Allocation:
    """Find the widths whose cost is nearest to the target.

    With measured sensitivities these are the widths of least summed damage. Else one number, the pruning ratio, turns
    the widths that the ranking requests from dense to the lowest. It is found by bisection; the last steps
    between the two neighbouring allocations are then taken group by group, the most overdue first.

    Args:
        groups: The coupled groups.
        scores: Of each group's units; the highest are kept.
        cost: What any choice of widths costs.
        options: The target, and the widths allowed.
        dense_reasons: Why a group is left dense whatever the target, or an empty string.
        curves: Measured sensitivities, for the ranking that needs them.
        wider: What other options would reach (see ``lowest_share``), asked where the target is out of reach.
        branches: Residual branches that may be dropped, and what that costs; only where sensitivities were measured.

    Raises:
        TargetError: The target is below what the widths allow; the message says what they do.
        PruningError: No group can be pruned.
    """
    name, value = target_of(options)
    free = [index for index, reason in enumerate(dense_reasons) if not reason]
    if not free and (not branches or name == "ratio"):
        raise PruningError(nothing_prunable(groups, dense_reasons))
    known = (groups, cost, options, dense_reasons, tuple(branches))
    lowest = lowest_share(*known)
    if lowest > (1 - value if name == "ratio" else value) + TOLERANCE:
        raise TargetError(out_of_reach(lowest, options, wider(), lowest_measured(*known)))
    widths = {index: possible_widths(groups[index], options) for index in free}
    dense = np.array([group.width for group in groups], dtype=np.float64)

    requested_widths = _requested_widths(groups, scores, free, options)

    def rounded(ratio: float) -> FloatArray:
        kept, asked = dense.copy(), requested_widths(ratio)
        for index in free:
            kept[index] = widths[index][np.abs(widths[index] - asked[index]).argmin()]
        return kept

    if options.ranking == "sensitivity":
        kept, note = _least_damage(curves, cost, name, value, widths, dense, options, branches)
        asked = kept
    elif name == "ratio":
        counted = float(dense[free].sum())
        asked, kept = requested_widths(value), rounded(value)
        note = missed_target(float(kept[free].sum()) / counted, 1 - value, options)
    else:
        measure: Measure = partial(cost.counted, target=name)
        total = cost.total(name)
        ratio = bisect(lambda s: cost.share_of_dense(rounded(s), name), value)
        asked = requested_widths(ratio)
        kept = refine(rounded, ratio, asked, measure, value * total, free)
        kept = polish(kept, measure, value * total, TOLERANCE * total, widths)
        note = missed_target(cost.share_of_dense(kept, name), value, options)
    return Allocation(
        kept=tuple(int(count) for count in kept),
        asked=tuple(float(width) for width in asked),
        reasons=tuple(
            (kept[index] and reason) or _difference(groups[index], float(asked[index]), int(kept[index]), options)
            for index, reason in enumerate(dense_reasons)
        ),
        note=note,
    )


def _requested_widths(
    groups: Sequence[Group], scores: Sequence[Scores], free: Sequence[int], options: PruneOptions
) -> Callable[[float], FloatArray]:
    """What the ranking asks of every group, from pruning ratio 0 (dense) to 1 (nothing left)."""
    dense = np.array([group.width for group in groups], dtype=np.float64)
    if options.ranking in ("auto", "uniform"):  # nothing was measured: see ``resolve_auto``
        mask = np.isin(np.arange(len(groups)), free)
        return lambda ratio: np.where(mask, dense * (1 - ratio), dense)
    rivals: dict[Any, list[int]] = defaultdict(list)
    for index in free:
        rivals[groups[index].structure if options.ranking == "isomorphic" else None].append(index)
    classes = []
    for members in rivals.values():
        owner = np.concatenate([np.full(groups[index].width, index) for index in members])
        classes.append(owner[np.argsort(np.concatenate([scores[index] for index in members]), kind="stable")])

    def requested_widths(ratio: float) -> FloatArray:
        """Remove the share ``ratio`` of the units of every class of rivals, the lowest scores first."""
        removed = np.concatenate([order[: round(ratio * len(order))] for order in classes])
        return dense - np.bincount(removed, minlength=len(groups))

    return requested_widths


def _least_damage(
    curves: Sequence[Curve | None],
    cost: CostModel,
    name: str,
    value: float,
    widths: dict[int, FloatArray],
    dense: FloatArray,
    options: PruneOptions,
    branches: Mapping[Branch, float],
) -> tuple[FloatArray, str | None]:
    """Solve for the widths and the branches to drop, and say how far from the target they are.

    A group that goes with a branch has 0 among its widths; the damage stands with the first of them.
    """
    if name == "ratio":
        counted = np.isin(np.arange(len(dense)), list(widths)).astype(np.float64)
        price: Price = Quadratic(constant=0.0, linear=counted, products=np.zeros((len(dense), len(dense))))
        total = float(dense @ counted)
        target = 1 - value
    else:
        price, target = cost.price(name), value
        total = float(cost.total(name))
    lowest = dense.copy()
    for index, possible in widths.items():
        lowest[index] = possible[0]
    most = _MOST_OPTIONS if len(widths) <= _FEW_GROUPS else _MOST_OPTIONS // 2
    offered = {index: _spread(possible, most) for index, possible in widths.items()}
    damage = {index: _curve(curves, index).damage(possible) for index, possible in offered.items()}
    for branch, harm in branches.items():
        lowest[list(branch.groups)] = 0
        for index in branch.groups:
            offered[index] = np.append(0.0, offered.get(index, dense[index]))
            damage[index] = np.append(harm if index == branch.groups[0] else 0.0, damage.get(index, 0.0))
    together = [branch.groups for branch in branches]
    kept = solve_knapsack(offered, damage, price, dense, max(target * total, price.of(lowest)), together)
    left = {index: possible for index, possible in widths.items() if kept[index]}
    if left:
        kept = polish(kept, price.of, target * total, TOLERANCE * total, left)
    return kept, missed_target(price.of(kept) / total, target, options)


def _curve(curves: Sequence[Curve | None], index: int) -> Curve:
    """The measured sensitivity of a group that can be pruned."""
    curve = curves[index]
    assert curve is not None
    return curve


def _spread(possible: FloatArray, most: int) -> FloatArray:
    """At most so many of the possible widths, evenly spread, with both ends."""
    chosen = np.unique(np.linspace(0, len(possible) - 1, most).round().astype(int))
    found: FloatArray = possible[chosen]
    return found


def _difference(group: Group, asked: float, kept: int, options: PruneOptions) -> str:
    """Why the width is not the one that was asked for, or an empty string."""
    if not kept:
        return "goes with its residual branch, which is dropped"
    if abs(asked - kept) < 0.5:
        return f"left dense: {asked:.1f} of {group.width} asked" if kept == group.width else ""
    step = width_step(group, options)
    if kept == group.width:
        return f"left dense: {asked:.1f} of {group.width} asked, and a multiple of {step} nearer to it overshoots"
    if asked < possible_widths(group, options)[0]:
        return f"{asked:.1f} asked; `max_pruning_ratio` and multiples of {step} allow no less than {kept}"
    if abs(asked - kept) <= step / 2:
        return f"{asked:.1f} asked, rounded to a multiple of {step}"
    return f"{asked:.1f} asked, moved by multiples of {step} to meet the target"
