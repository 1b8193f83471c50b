"""A sweep in sentences: what was picked, what was lost and gained, and what to beware of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from pruneport.bench.sweep.picks import speedup_of
from pruneport.bench.sweep.records import Figures, Limit, Point, Sweep
from pruneport.export.card.verdict import maybe_chance, points, points_lost, times_as_fast
from pruneport.export.card.words import percent

__all__ = ["remark_on_pick", "said_of_pick", "sweep_caveats", "sweep_verdict", "worth"]


def worth(figures: Figures) -> str:
    """Say what a network gained and lost."""
    first = figures.latencies[0]
    busy = " on a busy machine" if figures.busy else ""
    gained = f"{times_as_fast({'speedup': asdict(first.speedup)})} at batch {first.batch}{busy}"
    accuracy = figures.accuracy
    if accuracy is not None and accuracy.drop is not None:
        lost = points_lost(accuracy.drop / 100)
        return f"{gained}, {lost} on {accuracy.images} images{maybe_chance(asdict(accuracy))}"
    if figures.agreement is not None:
        share = percent(figures.agreement.top1)
        return f"{gained}, the dense network's first choice kept on {share} of {figures.agreement.images} images"
    return f"{gained}, accuracy not measured"


def said_of_pick(found: Sequence[Point], limit: Limit, best: Point | None) -> str:
    """Say which network was picked by a limit, and how sure that is; or why none was."""
    asked = _asked(limit)
    measured = [point for point in found if point.figures is not None and not point.error]
    if best is None or best.figures is None:
        if not measured:
            return f"No network was measured {asked}."
        near = max(measured, key=lambda point: _holds(point, limit))
        assert near.figures is not None
        return f"No network {asked} was found. The nearest is {near.name}: {worth(near.figures)}."
    kind = "fastest" if limit.rule == "max_drop" else "most accurate"
    return f"The {kind} {asked} is {best.name}: {worth(best.figures)}."


def remark_on_pick(found: Sequence[Point], limit: Limit, best: Point | None) -> str:
    """Say where the best may lie beyond what was tried; nothing where it was looked for."""
    if best is None or limit.rule != "max_drop" or any(point.kept < best.kept for point in found):
        return ""
    return f"{best.name} is the smallest that was tried: a smaller one may hold your limit, too."


def sweep_verdict(sweep: Sweep) -> str:
    """Say in a sentence what the sweep is worth: the first pick, or how far the trade-off goes."""
    if sweep.picks:
        pick = sweep.picks[0]
        figures = next((point.figures for point in sweep.points if point.name == pick.point), None)
        if figures is None:
            return f"No network {_asked(pick.limit)}"
        return f"{pick.point}: {worth(figures)}; {_within(pick.limit)}"
    measured = [(point.name, point.figures) for point in sweep.points if point.figures is not None]
    front = sorted(
        ((name, figures) for name, figures in measured if name in sweep.front),
        key=lambda pair: speedup_of(pair[1]).ratio,
    )
    if not front:
        return "No network is better than the dense one in anything."
    slowest, fastest = (f"{name}, {worth(figures)}" for name, figures in (front[0], front[-1]))
    return slowest if len(front) == 1 else f"From {slowest}; to {fastest}"


def sweep_caveats(sweep: Sweep) -> list[str]:
    """Say what a reader must know of all networks, and of single ones."""
    found = []
    if not sweep.trained:
        found.append("Architecture only: no checkpoint and no weights were given, so that accuracy means nothing.")
    if any(pick.point is not None for pick in sweep.picks) and any(
        point.figures is not None and point.figures.accuracy is not None for point in sweep.points
    ):
        found.append(
            "A pick is the best of several on the same images, which flatters it a little. Count it once more on "
            "images that had no part in the sweep: pruneport verify BUNDLE `images=OTHERS`."
        )
    found += [pick.remark for pick in sweep.picks if pick.remark]
    measured = [(point.name, point.figures) for point in sweep.points if point.figures is not None]
    if busy := [name for name, figures in measured if figures.busy]:
        found.append(
            f"The machine was busy when {len(busy)} of {len(measured)} networks were timed: {', '.join(busy)}. Their "
            "latencies are rough, and a pick by them may be wrong: sweep again on an idle machine, into another folder."
        )
    texts: dict[str, list[str]] = {}
    for name, figures in measured:
        for warning in figures.warnings:
            texts.setdefault(warning, []).append(name)
    found += [f"{', '.join(names)}: {text}" for text, names in texts.items()]
    return found


def _asked(limit: Limit) -> str:
    if limit.rule == "max_drop":
        return f"that loses at most {points(limit.value)} of top-1"
    return f"that is surely {limit.value:g} times as fast as the dense one"


def _within(limit: Limit) -> str:
    if limit.rule == "max_drop":
        return f"within your limit of {points(limit.value)}"
    return f"as fast as you ask, {limit.value:g} times"


def _holds(point: Point, limit: Limit) -> float:
    """The more, the nearer to holding the limit."""
    if limit.rule == "max_drop":
        return -_drop(point)
    return 0.0 if point.figures is None else speedup_of(point.figures).low


def _drop(point: Point) -> float:
    accuracy = None if point.figures is None else point.figures.accuracy
    return 100.0 if accuracy is None or accuracy.drop is None else accuracy.drop
