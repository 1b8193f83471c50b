"""The target: what is asked, how far the options reach, and what is said where it cannot be met."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from pruneport.arrays import FloatArray
from pruneport.compress.allocation.cost_model import LATENCIES, CostModel
from pruneport.compress.graph.branches import Branch
from pruneport.compress.graph.groups import Group
from pruneport.compress.graph.widths import possible_widths, width_step
from pruneport.compress.options import ChoiceOptions, PruneOptions
from pruneport.errors import TargetError

__all__ = [
    "TOLERANCE",
    "check_choice",
    "check_round_to",
    "check_widths",
    "lowest_measured",
    "lowest_share",
    "missed_target",
    "nothing_prunable",
    "out_of_reach",
    "target_of",
    "why_dense",
]

_TARGETS = ("flops", "params", "ratio", *LATENCIES)
_STREAM = "a residual stream, outside `scope=filters`"
_REPRESENTATION = "the representation (the output layer's input) keeps its width"
TOLERANCE = 0.01
"""How far from a target, as a share of dense, is no miss."""


def check_round_to(round_to: int) -> None:
    """Raise a ``TargetError`` where widths cannot be multiples of it."""
    if round_to < 1:
        raise TargetError(f"`round_to` is {round_to}; expected a whole number of at least 1, such as 8.")


def check_widths(options: ChoiceOptions) -> None:
    """Raise a ``TargetError`` where no width can be as the options say."""
    check_round_to(options.round_to)
    if not 0 < options.max_pruning_ratio < 1:
        raise TargetError(f"`max_pruning_ratio` is {options.max_pruning_ratio:g}; expected a share between 0 and 1.")


def check_choice(options: ChoiceOptions) -> None:
    """Check what says how it is chosen what goes.

    Raises:
        TargetError: An option is out of range, or two do not go together.
    """
    check_widths(options)
    if options.depth != "never" and options.ranking not in ("auto", "sensitivity"):
        raise TargetError(
            f"`depth={options.depth}` needs `ranking=sensitivity`, which measures what dropping a branch costs; given: "
            f"`ranking={options.ranking}`. Leave one of the two out."
        )


def target_of(options: PruneOptions) -> tuple[str, float]:
    """Return the one target that was given, as its name and value; what else is asked is checked, too.

    Raises:
        TargetError: None or several were given, or the value is outside (0, 1), or no time in milliseconds; or see
            ``check_choice``.
    """
    names = [name for name in _TARGETS if hasattr(options, name)]
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    if len(given) != 1:
        said = " and ".join(f"`{name}`" for name in given) if given else "none"
        listed = ", ".join(f"`{name}`" for name in names[:-1]) + f" and `{names[-1]}`"
        raise TargetError(f"exactly one of {listed} is needed; given: {said}.")
    name, value = next(iter(given.items()))
    if name == "latency_ms":
        if not 0 < value < math.inf:
            raise TargetError(f"`latency_ms` is {value:g}; expected milliseconds above 0, fewer than the dense takes.")
        check_choice(options)
        return name, value
    meaning = "share of filters to remove" if name == "ratio" else "share of dense to keep"
    if not 0 < value < 1:
        hint = f" Did you mean {value / 100:g}?" if 1 < value < 100 else ""
        raise TargetError(f"`{name}` is {value:g}; expected a {meaning} between 0 and 1, such as 0.5.{hint}")
    check_choice(options)
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


def lowest_share(
    groups: Sequence[Group],
    cost: CostModel,
    options: PruneOptions,
    dense_reasons: Sequence[str],
    branches: Sequence[Branch] = (),
) -> float:
    """What is left, of the dense cost or of the prunable filters, where every group has its lowest width.

    ``branches`` are dropped.
    """
    name, _ = target_of(options)
    lowest = _lowest(groups, options, dense_reasons, branches)
    if name == "ratio":
        dense = np.array([group.width for group in groups], dtype=np.float64)
        free = np.array([not reason for reason in dense_reasons], dtype=bool)
        return float(lowest[free].sum() / dense[free].sum())
    return cost.share_of_dense(lowest, name)


def lowest_measured(
    groups: Sequence[Group],
    cost: CostModel,
    options: PruneOptions,
    dense_reasons: Sequence[str],
    branches: Sequence[Branch] = (),
) -> float | None:
    """The share of the dense latency that was measured there; None where the target is another, or it was not."""
    name, _ = target_of(options)
    if name != "latency" or cost.latency is None:
        return None
    return cost.latency.measured(_lowest(groups, options, dense_reasons, branches))


def _lowest(
    groups: Sequence[Group], options: PruneOptions, dense_reasons: Sequence[str], branches: Sequence[Branch]
) -> FloatArray:
    """The lowest width of every group, (groups,)."""
    lowest = np.array(
        [
            group.width if reason else possible_widths(group, options)[0]
            for group, reason in zip(groups, dense_reasons, strict=True)
        ],
        dtype=np.float64,
    )
    lowest[[index for branch in branches for index in branch.groups]] = 0
    return lowest


def missed_target(achieved: float, target: float, options: PruneOptions) -> str | None:
    """A sentence where the share that is kept is not the target's; both as in ``lowest_share``."""
    if abs(achieved - target) <= TOLERANCE:
        return None
    name, value = target_of(options)
    if name == "ratio":
        return (
            f"asked to remove {value:.4g} of the prunable filters, removed {1 - achieved:.4f}: widths are multiples of "
            f"{options.round_to}, and no group loses more than {options.max_pruning_ratio:g}."
        )
    said = (
        f"asked for {value:.4g} of the dense {name}, reached {achieved:.4f}: widths are multiples of {options.round_to}"
    )
    if options.depth != "never":
        said += ", branches go as a whole,"
        finer = "; a smaller `round_to` or a larger `max_pruning_ratio` may"
    else:
        finer = "; a smaller `round_to` does" if options.round_to > 1 else ""
    return f"{said} and no step from here comes nearer{finer}."


def out_of_reach(
    lowest: float, options: PruneOptions, wider: Mapping[str, float], measured: float | None = None
) -> str:
    """Say how far it goes, and what goes further; shares to keep, as in ``lowest_share`` and ``lowest_measured``."""
    name, value = target_of(options)
    helps = [
        f"{option} (reaches {reached:.4f})" for option, reached in wider.items() if reached < lowest - TOLERANCE / 10
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
    said = f"{lowest:.4f} of dense" + ("" if measured is None else f", and {measured:.4f} was measured there")
    return (
        f"`{name}={value:g}` cannot be reached: with these options the lowest is {said}. What helps: "
        f"{', '.join(helps)}."
    )


def nothing_prunable(groups: Sequence[Group], reasons: Sequence[str]) -> str:
    """Say of every group why it is left dense."""
    lines = [f"  {group.name} ({group.width}): {reason}" for group, reason in zip(groups, reasons, strict=True)]
    shown = lines[:12] + ([f"  … and {len(lines) - 12} more"] if len(lines) > 12 else [])
    if _STREAM in reasons:
        shown.append("`scope=channels` prunes residual streams too.")
    if _REPRESENTATION in reasons:
        shown.append("`prune_representation` prunes the output layer's input too.")
    return "nothing can be pruned with these options:\n" + "\n".join(shown or ["  the network has no groups"])
