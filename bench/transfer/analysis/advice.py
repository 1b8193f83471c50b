"""Advice: what share of the MACs to keep for a budget, by a law fitted to a study or by what it measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from pruneport.bench.transfer.analysis.advice_records import Advice, MeasuredBest, WayAdvice
from pruneport.bench.transfer.analysis.curves import Cell, Means, cells, measured, stream
from pruneport.bench.transfer.analysis.law import FORMS, Check, Law, Point, best_macs_kept, check_law, fit_law
from pruneport.bench.transfer.store import Finished
from pruneport.bench.transfer.study import names
from pruneport.errors import InputError

__all__ = ["advise", "fit_all", "least", "points_of"]


def advise(finished: Sequence[Finished], budget: float, task: str | None, network: str | None) -> Advice:
    """For a budget, the share of the MACs to keep, with the evidence: by the law, or where none can be fitted the best
    that was measured at the nearest budget below.

    Args:
        finished: The study's trials.
        budget: Training FLOPs.
        task: One of the study's, or None for one like them.
        network: One of the study's; needed where it has several.

    Raises:
        InputError: No such task or network, several networks and none named, or too few results.
    """
    of = cells(finished)
    if not 0 < budget < math.inf:
        raise InputError(f"`budget` is {budget:g}; expected a finite number of training FLOPs above 0, such as 1e12.")
    chosen = _named(network, sorted({cell.network for cell in of}), "network")
    mine = [cell for cell in of if cell.network == chosen]
    only = _named(task, sorted({cell.task for cell in mine}), "task") if task else None
    ways = sorted({(cell.way.scope, cell.way.recipe) for cell in mine if cell.way.kept < 1})
    if not ways:
        raise InputError(f"only the dense network has results for {names([chosen])[chosen]}: let the study run on.")
    means = stream([cell for cell in mine if only in (None, cell.task)], chosen)
    answers = [_answer(mine, means, scope, recipe, budget, only) for scope, recipe in ways]
    known = tuple(answer for answer in answers if answer is not None)
    if not known:
        raise InputError(
            f"there is nothing to compare: with no budget have two shares of {names([chosen])[chosen]} results on "
            f"{'the task' if only else 'every task'}. Let the study run on, or give it more `kept`."
        )
    best = min(known, key=lambda answer: (answer.law is None, answer.expected_error))
    return Advice(budget=budget, network=chosen, task=only, advice=best, others=known)


def _answer(
    mine: Sequence[Cell], means: Means, scope: str, recipe: str, budget: float, only: str | None
) -> WayAdvice | None:
    """What one way of pruning has to say: by its law, or else by what was measured; None where that is nothing."""
    best = measured(means, scope, recipe)
    at = max((run for run in best if run <= budget), default=min(best, default=None))
    seen = None if at is None else MeasuredBest(budget=at, kept=least(best[at]), errors=best[at])
    points = points_of(mine, scope, recipe)
    if only is not None and all(point.task != only for point in points):
        points = []
    law = check = None
    no_law = ""
    try:
        laws, checks, form = fit_all(points)
    except InputError as error:
        no_law = str(error)
        if seen is None:
            return None
        kept, errors, runs = seen.kept, seen.errors, sorted(best)
    else:
        law, check, runs = laws[form], checks[form], sorted({point.budget for point in points})
        tasks = [only] if only else sorted(law.floors)
        shares = sorted({point.macs_kept for point in points})
        errors = {share: float(np.mean([law.error(name, share, budget) for name in tasks])) for share in shares}
        kept = best_macs_kept(law, shares, budget)
    return WayAdvice(
        scope=scope,
        recipe=recipe,
        kept=kept,
        measured=seen,
        predicted={} if law is None else errors,
        law=None if law is None else law.form,
        no_law=no_law,
        check=check,
        expected_error=errors[kept],
        extrapolated=not runs[0] <= budget <= runs[-1],
    )


def least(errors: Mapping[float, float]) -> float:
    """The share with the least error; of equal ones the smallest."""
    return min(sorted(errors), key=lambda share: errors[share])


def _named(given: str | None, known: Sequence[str], what: str) -> str:
    """The study's only one of this name, long or short, or its only one where none was given."""
    short = names(list(known))
    found = [name for name in known if given in (None, name, short[name])]
    if len(found) != 1:
        listed = ", ".join(short.values()) or "none yet"
        raise InputError(f"`{what}` {given or 'was not given'}: expected one {what} of the study's ({listed}).")
    return found[0]


def points_of(mine: Sequence[Cell], scope: str, recipe: str) -> list[Point]:
    """What a law of one way of pruning is fitted to: that way's cells and the dense network's."""
    return [
        Point(task=cell.task, macs_kept=cell.way.kept, budget=cell.budget, error=cell.mean)
        for cell in mine
        if cell.way.kept == 1 or (cell.way.scope, cell.way.recipe) == (scope, recipe)
    ]


def fit_all(points: Sequence[Point]) -> tuple[dict[str, Law], dict[str, Check], str]:
    """Every form that the points allow, fitted and checked, and which has the most to say for it.

    Raises:
        InputError: There are too few points for any.
    """
    laws: dict[str, Law] = {}
    refused: dict[str, InputError] = {}
    for form in FORMS:
        try:
            laws[form] = fit_law(points, form)
        except InputError as error:
            refused[form] = error
    if not laws:
        raise refused[min(FORMS, key=lambda form: FORMS[form][0])]  # the one with the fewest parameters
    checks = {form: check_law(points, form) for form in laws}
    return laws, checks, min(laws, key=lambda form: _doubts(laws[form], checks[form], len(points)))


def _doubts(law: Law, check: Check, points: int) -> tuple[bool, float, float]:
    """Least for the form whose advice costs least on tasks that it was not fitted on; of equal ones the better
    predictor. Where there is one task: at a budget that it was not fitted on, and the least residual for its number of
    parameters.
    """
    if check.regret is not None:
        return False, round(check.regret, 4), check.error_rms or 0.0
    free = points - len(law.parameters) - 2 * len(law.floors)
    return True, round(check.budget_regret or 0.0, 4), law.rms / math.sqrt(free)
