"""Which network is worth it: the best within a limit, where to look for a better one, and what no other beats."""

from __future__ import annotations

from collections.abc import Sequence

from pruneport.bench.latency.records import Speedup
from pruneport.bench.sweep.records import Figures, Limit, Point
from pruneport.export.accuracy import ROUNDING

__all__ = ["CLOSE", "best_within", "next_kept", "pareto_front", "quality_of", "speedup_of", "unbeaten", "within"]

CLOSE = 0.02
"""Of dense: a search ends where what holds the limit and what does not are no further apart."""


def speedup_of(figures: Figures) -> Speedup:
    """At the smallest batch size that was timed."""
    return figures.latencies[0].speedup


def quality_of(figures: Figures) -> float:
    """How good a network is, from 0 to 1: its top-1, else its agreement with dense, else the share of MACs kept."""
    if figures.accuracy is not None:
        return figures.accuracy.pruned_onnx
    if figures.agreement is not None:
        return figures.agreement.top1
    return figures.pruned.macs / figures.dense.macs


def within(point: Point, limit: Limit) -> bool:
    """Whether a network holds a limit: a speed-up by the lower end of its interval, a drop as it was counted."""
    if point.figures is None or point.error:
        return False
    if limit.rule == "min_speedup":
        return speedup_of(point.figures).low >= limit.value
    accuracy = point.figures.accuracy
    drop = None if accuracy is None else accuracy.drop
    return drop is not None and drop <= limit.value + ROUNDING


def best_within(points: Sequence[Point], limit: Limit) -> Point | None:
    """The fastest network that loses no more than the limit, or the most accurate that is as fast."""
    held = [(point, point.figures) for point in points if point.figures is not None and within(point, limit)]
    if not held:
        return None
    if limit.rule == "max_drop":
        return max(held, key=lambda pair: speedup_of(pair[1]).ratio)[0]
    return max(held, key=lambda pair: (quality_of(pair[1]), speedup_of(pair[1]).ratio))[0]


def next_kept(points: Sequence[Point], limit: Limit, lowest: float | None = None) -> float | None:
    """What share to keep next, to come nearer to the limit: half way between what holds it and what does not.

    Args:
        points: All that were tried.
        limit: What is to be held.
        lowest: A share that is known not to hold, or not to be reached, where none of the points says so.

    Returns:
        A share of dense in (0, 1); None where there is nothing between to try.
    """
    held = [point.kept for point in points if within(point, limit)]
    failed = [point.kept for point in points if not within(point, limit)]
    upper = 1.0  # the dense network loses nothing, and is no faster
    if limit.rule == "max_drop":
        best = best_within(points, limit)
        lower = max([kept for kept in failed if best is None or kept < best.kept], default=lowest)
        upper = min([kept for kept in held if lower is None or kept > lower], default=upper)
    else:
        lower = max(held, default=lowest)
        upper = min([kept for kept in failed if lower is None or kept > lower], default=upper)
    if lower is None or upper - lower <= CLOSE + 1e-9 or _alike(points, lower, upper):
        return None
    return round((lower + upper) / 2, 4)


def _alike(points: Sequence[Point], *kept: float) -> bool:
    """Whether both shares gave the same network: then so does what lies between."""
    costs = [point.figures.pruned for point in points if point.kept in kept and point.figures is not None]
    return len(costs) == 2 and (costs[0].macs, costs[0].params) == (costs[1].macs, costs[1].params)


def pareto_front(points: Sequence[Point]) -> tuple[str, ...]:
    """Names of the points that no other, nor the dense network, beats in both accuracy and latency."""
    found = [(point.name, figures) for point in points if not point.error and (figures := point.figures) is not None]
    if not found:
        return ()
    accuracy = found[0][1].accuracy
    dense = 1.0 if accuracy is None or accuracy.dense_torch is None else accuracy.dense_torch
    places = [(1 / speedup_of(figures).ratio, quality_of(figures)) for _, figures in found]
    kept = unbeaten([*places, (1.0, dense)])
    return tuple(name for (name, _), stays in zip(found, kept, strict=False) if stays)


def unbeaten(places: Sequence[tuple[float, float]]) -> list[bool]:
    """Of each (cost, quality) whether none is at least as good in both, and better in one."""
    return [
        not any(
            cheaper <= cost and better >= quality and (cheaper, better) != (cost, quality) for cheaper, better in places
        )
        for cost, quality in places
    ]
