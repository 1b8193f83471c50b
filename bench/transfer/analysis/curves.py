"""What a study's events say: errors by budget, the frontier, areas under curves, where dense and pruned cross."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pruneport.arrays import AnyArray
from pruneport.bench.transfer.store import Finished

__all__ = [
    "Cell",
    "Means",
    "Way",
    "areas",
    "cells",
    "crossing",
    "curve",
    "deviation",
    "frontier",
    "low_budget_gain",
    "measured",
    "stream",
]


class Way(NamedTuple):
    """How a network was pruned: its scope and recipe, ``dense`` and ``none`` for the dense one."""

    scope: str
    recipe: str
    kept: float


Means = Mapping[tuple[Way, float], tuple[float, float | None]]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The final errors of one way on one task with one budget.

    Attributes:
        errors: One a seed, shares of the test images.
    """

    network: str
    task: str
    way: Way
    budget: float
    errors: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return float(np.mean(self.errors))

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds; None for a single one."""
        return float(np.std(self.errors, ddof=1)) if len(self.errors) > 1 else None


def cells(finished: Iterable[Finished]) -> list[Cell]:
    """Group finished trials by all but the seed; trials that failed are left out."""
    errors: dict[tuple[str, str, Way, float], list[float]] = defaultdict(list)
    for done in finished:
        if done.events:
            trial = done.trial
            way = Way(trial.scope, trial.recipe, trial.kept)
            errors[trial.network, trial.task, way, trial.budget].append(done.events[-1].error)
    return [
        Cell(network=network, task=task, way=way, budget=budget, errors=tuple(found))
        for (network, task, way, budget), found in sorted(errors.items())
    ]


def curve(of: Sequence[Cell], network: str, task: str, way: Way) -> list[Cell]:
    """The cells of one way by rising budget."""
    found = [cell for cell in of if (cell.network, cell.task, cell.way) == (network, task, way)]
    return sorted(found, key=lambda cell: cell.budget)


def stream(of: Sequence[Cell], network: str) -> Means:
    """Mean error over the tasks and its standard deviation over seeds, by way and budget.

    A cell counts where every task of the network has it. The deviation is that of the tasks' mean, the seeds of
    different tasks being independent; None where a task has one seed.
    """
    tasks = {cell.task for cell in of if cell.network == network}
    by_point: dict[tuple[Way, float], list[Cell]] = defaultdict(list)
    for cell in of:
        if cell.network == network:
            by_point[cell.way, cell.budget].append(cell)
    return {
        point: (
            float(np.mean([cell.mean for cell in found])),
            deviation([cell.spread for cell in found], len(found)),
        )
        for point, found in by_point.items()
        if len(found) == len(tasks)
    }


def deviation(of: Sequence[float | None], count: int = 1) -> float | None:
    """Of the sum of independent values over ``count``; None where the deviation of one is not known."""
    known = [value for value in of if value is not None]
    return math.sqrt(sum(value**2 for value in known)) / count if len(known) == len(of) else None


def measured(means: Means, scope: str, recipe: str) -> dict[float, dict[float, float]]:
    """Mean errors by budget and share, the dense network's among them, where there are two shares or more to compare.

    Args:
        means: From ``stream``, so that every share's error is of the same tasks.
        scope: What was pruned.
        recipe: How.
    """
    found: dict[float, dict[float, float]] = defaultdict(dict)
    for (way, budget), (error, _) in sorted(means.items()):
        if way.kept == 1 or (way.scope, way.recipe) == (scope, recipe):
            found[budget][way.kept] = error
    return {budget: errors for budget, errors in sorted(found.items()) if len(errors) > 1}


def frontier(finished: Iterable[Finished], network: str, task: str) -> list[tuple[float, float, Way]]:
    """The least error that any event reaches with so much compute: (flops, error, way), falling.

    Events are averaged over the seeds that measured at the same step.
    """
    events: dict[tuple[Way, float, int], list[tuple[float, float]]] = defaultdict(list)
    for done in finished:
        if (done.trial.network, done.trial.task) == (network, task):
            way = Way(done.trial.scope, done.trial.recipe, done.trial.kept)
            for event in done.events:
                events[way, done.trial.budget, event.step].append((event.flops, event.error))
    points = sorted((found[0][0], float(np.mean([e for _, e in found])), way) for (way, _, _), found in events.items())
    best: list[tuple[float, float, Way]] = []
    for flops, error, way in points:
        if not best or error < best[-1][1]:
            best.append((flops, error, way))
    return best


def areas(of: Sequence[Cell], network: str) -> dict[str, dict[Way, float]]:
    """Normalised area under error against log FLOPs, by task and way: the mean error over the budgets' decades.

    0 is never wrong, 1 always. The task named "" is the stream: the mean over the tasks, as Nevis'22 reports
    (Bornschein et al. 2022, arXiv 2211.11747), where every task has the whole curve.
    """
    found: dict[str, dict[Way, float]] = defaultdict(dict)
    mine = [cell for cell in of if cell.network == network]
    budgets = sorted({cell.budget for cell in mine})
    for task in sorted({cell.task for cell in mine}):
        for way in sorted({cell.way for cell in mine}):
            line = curve(mine, network, task, way)
            if [cell.budget for cell in line] == budgets:
                found[task][way] = _area(np.log(budgets), [cell.mean for cell in line])
    every = [found[task] for task in sorted({cell.task for cell in mine})]
    ways = set.intersection(*(set(entry) for entry in every)) if every else set()
    found[""] = {way: float(np.mean([entry[way] for entry in every])) for way in sorted(ways)}
    return dict(found)


def low_budget_gain(of: Sequence[Cell], network: str) -> list[tuple[float, Way, float, float, float | None]]:
    """For the low third of the budgets: budget, the best pruned way, its accuracy, dense accuracy, deviation of both.

    We define: those in the lowest third of their range, which is one of log FLOPs. The deviation is None where a task
    has one seed.

    The paper's claim (arXiv 2304.13164): more than 20 % better at low budgets.
    """
    means = stream(of, network)
    budgets = sorted({budget for _, budget in means})
    found = []
    low = budgets[0] * (budgets[-1] / budgets[0]) ** (1 / 3) * (1 + 1e-9) if budgets else 0.0
    for budget in (budget for budget in budgets if budget <= low):
        dense = next((value for (way, at), value in means.items() if at == budget and way.kept == 1), None)
        pruned = {way: value for (way, at), value in means.items() if at == budget and way.kept < 1}
        if dense is not None and pruned:
            way = min(pruned, key=lambda one: pruned[one][0])
            spread = deviation([pruned[way][1], dense[1]])
            found.append((budget, way, 1 - pruned[way][0], 1 - dense[0], spread))
    return found


def crossing(means: Means, way: Way) -> float | None:
    """The budget from which the dense network is better on the mean over tasks; None where it never is.

    Between two budgets the curves are taken as straight in log FLOPs.
    """
    dense = {budget: value[0] for (one, budget), value in means.items() if one.kept == 1}
    pruned = {budget: value[0] for (one, budget), value in means.items() if one == way}
    budgets = sorted(dense.keys() & pruned.keys())
    gaps = [dense[budget] - pruned[budget] for budget in budgets]  # positive: pruned is better
    if not gaps or gaps[-1] > 0:
        return None
    last = max((index for index, gap in enumerate(gaps) if gap > 0), default=None)
    if last is None:
        return budgets[0]
    share = gaps[last] / (gaps[last] - gaps[last + 1])
    low, high = math.log(budgets[last]), math.log(budgets[last + 1])
    return math.exp(low + share * (high - low))


def _area(x: AnyArray, y: Sequence[float]) -> float:
    if len(x) == 1:
        return float(y[0])
    return float(np.trapezoid(y, x) / (x[-1] - x[0]))
