"""Allocation: how many units each group keeps, so that the network meets its target."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from pruneport.arrays import FloatArray
from pruneport.compress.allocation.approach import Measure, bisect, polish, refine
from pruneport.compress.allocation.cost_model import CostModel, Quadratic
from pruneport.compress.allocation.knapsack import solve_knapsack
from pruneport.compress.graph.groups import Group
from pruneport.compress.graph.widths import Scores, possible_widths, width_step
from pruneport.compress.importance.sensitivity import Curve
from pruneport.compress.options import PruneOptions
from pruneport.errors import PruningError, TargetError

__all__ = ["Allocation", "allocate", "check_round_to", "lowest_share", "missed_target", "target_of", "why_dense"]

_STREAM = "a residual stream, outside `scope=filters`"
_REPRESENTATION = "the representation (the output layer's input) keeps its width"
_TOLERANCE = 0.01
_MOST_OPTIONS = 17  # widths a group offers the solver; the last steps are taken after it
_FEW_GROUPS = 40


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """Units that each group keeps.

    Attributes:
        kept: Units kept, one entry a group.
        asked: What the ranking asked for before rounding; the dense width where nothing was asked.
        reasons: Why a group was left dense, or why kept differs from asked; else empty.
        note: A sentence where the target is missed by more than 1 % of dense (of the prunable filters for a ratio),
            else None.
    """

    kept: tuple[int, ...]
    asked: tuple[float, ...]
    reasons: tuple[str, ...]
    note: str | None


def check_round_to(round_to: int) -> None:
    """Raise a ``TargetError`` where widths cannot be multiples of it."""
    if round_to < 1:
        raise TargetError(f"`round_to` is {round_to}; expected a whole number of at least 1, such as 8.")


def target_of(options: PruneOptions) -> tuple[str, float]:
    """Return the one target that was given, as its name and value.

    Raises:
        TargetError: None or several were given, or the value is outside (0, 1).
    """
    given = {name: value for name in ("flops", "params", "ratio") if (value := getattr(options, name)) is not None}
    if len(given) != 1:
        said = " and ".join(f"`{name}`" for name in given) if given else "none"
        raise TargetError(f"exactly one of `flops`, `params` and `ratio` is needed; given: {said}.")
    name, value = next(iter(given.items()))
    meaning = "share of filters to remove" if name == "ratio" else "share of dense to keep"
    if not 0 < value < 1:
        hint = f" Did you mean {value / 100:g}?" if 1 < value < 100 else ""
        raise TargetError(f"`{name}` is {value:g}; expected a {meaning} between 0 and 1, such as 0.5.{hint}")
    check_round_to(options.round_to)
    if not 0 < options.max_pruning_ratio < 1:
        raise TargetError(f"`max_pruning_ratio` is {options.max_pruning_ratio:g}; expected a share between 0 and 1.")
    return name, value


def why_dense(group: Group, options: PruneOptions, kept_by: str | None = None) -> str:
    """Why the group is left dense whatever the target, or an empty string."""
    if group.role == "output":
        return "the network's outputs always stay"
    if group.role == "representation" and not options.prune_representation:
        return _REPRESENTATION
    if kept_by is not None:
        return f"kept by `keep` {kept_by}"
    if group.reason:
        return group.reason
    if group.role == "stream" and options.scope == "filters":
        return _STREAM
    if len(possible_widths(group, options)) < 2:
        step = width_step(group, options)
        return f"its width {group.width} leaves no smaller multiple of {step} within `max_pruning_ratio`"
    return ""


def allocate(
    groups: Sequence[Group],
    scores: Sequence[Scores],
    cost: CostModel,
    options: PruneOptions,
    dense_reasons: Sequence[str],
    curves: Sequence[Curve | None] = (),
    wider: Callable[[], Mapping[str, float]] = dict,
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

    Raises:
        TargetError: The target is below what the widths allow; the message says what they do.
        PruningError: No group can be pruned.
    """
    name, value = target_of(options)
    free = [index for index, reason in enumerate(dense_reasons) if not reason]
    if not free:
        raise PruningError(_nothing_prunable(groups, dense_reasons))
    lowest = lowest_share(groups, cost, options, dense_reasons)
    if lowest > (1 - value if name == "ratio" else value) + _TOLERANCE:
        raise TargetError(_out_of_reach(lowest, options, wider()))
    widths = {index: possible_widths(groups[index], options) for index in free}
    dense = np.array([group.width for group in groups], dtype=np.float64)

    requested_widths = _requested_widths(groups, scores, free, options)

    def rounded(ratio: float) -> FloatArray:
        kept, asked = dense.copy(), requested_widths(ratio)
        for index in free:
            kept[index] = widths[index][np.abs(widths[index] - asked[index]).argmin()]
        return kept

    if options.ranking == "sensitivity":
        kept, note = _least_damage(curves, cost, name, value, widths, dense, options)
        asked = kept
    elif name == "ratio":
        counted = float(dense[free].sum())
        asked, kept = requested_widths(value), rounded(value)
        note = missed_target(float(kept[free].sum()) / counted, 1 - value, options)
    else:
        measure: Measure = partial(cost.counted, target=name)
        total = cost.dense.counted(name)
        ratio = bisect(lambda s: cost.share_of_dense(rounded(s), name), value)
        asked = requested_widths(ratio)
        kept = refine(rounded, ratio, asked, measure, value * total, free)
        kept = polish(kept, measure, value * total, _TOLERANCE * total, widths)
        note = missed_target(cost.share_of_dense(kept, name), value, options)
    return Allocation(
        kept=tuple(int(count) for count in kept),
        asked=tuple(float(width) for width in asked),
        reasons=tuple(
            reason or _difference(groups[index], float(asked[index]), int(kept[index]), options)
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
) -> tuple[FloatArray, str | None]:
    """Solve for the widths, and say how far from the target they are."""
    if name == "ratio":
        counted = np.isin(np.arange(len(dense)), list(widths)).astype(np.float64)
        price = Quadratic(constant=0.0, linear=counted, products=np.zeros((len(dense), len(dense))))
        total = float(dense @ counted)
        target = 1 - value
    else:
        price, target = cost.quadratic(name), value
        total = price.of(dense)
    lowest = dense.copy()
    for index, possible in widths.items():
        lowest[index] = possible[0]
    most = _MOST_OPTIONS if len(widths) <= _FEW_GROUPS else _MOST_OPTIONS // 2
    offered = {index: _spread(possible, most) for index, possible in widths.items()}
    damage = {index: _curve(curves, index).damage(possible) for index, possible in offered.items()}
    kept = solve_knapsack(offered, damage, price, dense, max(target * total, price.of(lowest)))
    kept = polish(kept, price.of, target * total, _TOLERANCE * total, widths)
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


def lowest_share(
    groups: Sequence[Group], cost: CostModel, options: PruneOptions, dense_reasons: Sequence[str]
) -> float:
    """What is left, of the dense cost or of the prunable filters, where every group has its lowest width."""
    name, _ = target_of(options)
    dense = np.array([group.width for group in groups], dtype=np.float64)
    free = np.array([not reason for reason in dense_reasons])
    lowest = dense.copy()
    for index in np.flatnonzero(free).tolist():
        lowest[index] = possible_widths(groups[index], options)[0]
    if name == "ratio":
        return float(lowest[free].sum() / dense[free].sum())
    return cost.share_of_dense(lowest, name)


def _out_of_reach(lowest: float, options: PruneOptions, wider: Mapping[str, float]) -> str:
    """Say how far it goes, and what goes further; shares to keep, as in ``lowest_share``."""
    name, value = target_of(options)
    helps = [
        f"{option} (reaches {reached:.4f})" for option, reached in wider.items() if reached < lowest - _TOLERANCE / 10
    ]
    if options.round_to > 1:
        helps.append(f"a smaller `round_to` than {options.round_to}")
    helps.append(f"a larger `max_pruning_ratio` than {options.max_pruning_ratio:g}")
    if options.keep:
        helps.append("fewer `keep`")
    if name == "ratio":  # a share of what may go, which other groups do not change
        return (
            f"`ratio={value:g}` cannot be reached: with these options at most {1 - lowest:.4f} of the prunable filters "
            f"can be removed. What helps: {', '.join(helps)}."
        )
    return (
        f"`{name}={value:g}` cannot be reached: with these options the lowest is {lowest:.4f} of dense. What helps: "
        f"{', '.join(helps)}."
    )


def missed_target(achieved: float, target: float, options: PruneOptions) -> str | None:
    """A sentence where the share that is kept is not the target's; both as in ``lowest_share``."""
    if abs(achieved - target) <= _TOLERANCE:
        return None
    name, value = target_of(options)
    if name == "ratio":
        return (
            f"asked to remove {value:.4g} of the prunable filters, removed {1 - achieved:.4f}: widths are multiples of "
            f"{options.round_to}, and no group loses more than {options.max_pruning_ratio:g}."
        )
    finer = "; a smaller `round_to` does" if options.round_to > 1 else ""
    return (
        f"asked for {value:.4g} of the dense {name}, reached {achieved:.4f}: widths are multiples of "
        f"{options.round_to} and no step from here comes nearer{finer}."
    )


def _difference(group: Group, asked: float, kept: int, options: PruneOptions) -> str:
    """Why the width is not the one that was asked for, or an empty string."""
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


def _nothing_prunable(groups: Sequence[Group], reasons: Sequence[str]) -> str:
    """Say of every group why it is left dense."""
    lines = [f"  {group.name} ({group.width}): {reason}" for group, reason in zip(groups, reasons, strict=True)]
    shown = lines[:12] + ([f"  … and {len(lines) - 12} more"] if len(lines) > 12 else [])
    if _STREAM in reasons:
        shown.append("`scope=channels` prunes residual streams too.")
    if _REPRESENTATION in reasons:
        shown.append("`prune_representation` prunes the output layer's input too.")
    return "nothing can be pruned with these options:\n" + "\n".join(shown or ["  the network has no groups"])
