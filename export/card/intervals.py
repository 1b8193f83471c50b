"""How sure a share of images is: 95 % intervals for one share, and for the change between two on the same images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["Interval", "change_interval", "change_p_value", "paired_change", "share_interval"]

_Z = 1.959963984540054  # the normal distribution's 97.5 % quantile


class Interval(NamedTuple):
    """Both ends of a 95 % interval, as shares of one."""

    low: float
    high: float


def share_interval(count: float, images: int) -> Interval:
    """Return Wilson's score interval of a share.

    E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927), 209-212.

    Args:
        count: Images that count, of ``images``.
        images: All of them; where there are none, nothing is known.

    Example:
        >>> [round(end, 3) for end in share_interval(81, 263)]
        [0.255, 0.366]
    """
    if images < 1:
        return Interval(0.0, 1.0)
    share, scale = min(1.0, max(0.0, count / images)), _Z**2 / images
    centre = (share + scale / 2) / (1 + scale)
    half = math.sqrt(share * (1 - share) * scale + scale**2 / 4) / (1 + scale)
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def paired_change(before: int, after: int, lost: int, images: int) -> Interval:
    """Return an interval of ``after - before``, as a share, where both are counts on the same images.

    Method 10 of R. G. Newcombe, Improved confidence intervals for the difference between binomial proportions based on
    paired data, Statistics in Medicine 17 (1998), 2635-2650: Wilson's intervals of both, with their correlation.

    Args:
        before: Images that count before.
        after: Images that count after.
        lost: Those that count before and not after.
        images: All of them; where there are none, nothing is known.

    Example:
        >>> [round(end, 4) for end in paired_change(38, 48, 2, 50)]
        [0.0569, 0.3404]
    """
    if images < 1:
        return Interval(-1.0, 1.0)
    both = before - lost
    neither = images - after - lost
    product = before * (images - before) * after * (images - after)
    correlation = 0.0
    if product > 0:
        excess: float = both * neither - lost * (after - both)
        excess = max(excess - images / 2, 0) if excess > 0 else excess  # Newcombe's correction for continuity
        correlation = excess / math.sqrt(product)
    old, new = share_interval(before, images), share_interval(after, images)
    share, was = after / images, before / images
    change = share - was

    def reach(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one**2 - 2 * correlation * one * other + other**2))

    return Interval(
        max(-1.0, change - reach(share - new.low, old.high - was)),
        min(1.0, change + reach(new.high - share, was - old.low)),
    )


def change_interval(accuracy: Mapping[str, Any]) -> Interval | None:
    """Return the interval of the change in top-1, from dense torch to pruned ONNX, or None where it was not counted.

    Args:
        accuracy: What ``verify.json`` has under that name.
    """
    images, lost, won = accuracy["images"], accuracy.get("only_dense"), accuracy.get("only_pruned")
    if lost is None or won is None or accuracy.get("dense_torch") is None:
        return None
    before = round(accuracy["dense_torch"] * images)
    return paired_change(before, before - lost + won, lost, images)


def change_p_value(accuracy: Mapping[str, Any]) -> float | None:
    """Return how likely a change in top-1 as large is where pruning changes nothing; None where it was not counted.

    McNemar's exact test: of the images that only one of the two networks gets right, as many are the pruned one's by
    chance (Q. McNemar, Psychometrika 12 (1947), 153-157; exact by the binomial distribution).

    Args:
        accuracy: What ``verify.json`` has under that name.

    Example:
        >>> round(change_p_value({"only_dense": 10, "only_pruned": 2}), 3)
        0.039
    """
    from scipy import stats  # slow to import

    lost, won = accuracy.get("only_dense"), accuracy.get("only_pruned")
    if lost is None or won is None:
        return None
    return float(stats.binomtest(lost, lost + won, 0.5).pvalue) if lost + won else 1.0
