"""A study in numbers: what the report shows and what is committed beside it, as plain data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pruneport.bench.devices import describe_device, library_versions
from pruneport.bench.frontier import (
    Cell,
    Means,
    areas,
    cells,
    crossing,
    curve,
    deviation,
    frontier,
    low_budget_gain,
    measured,
    stream,
)
from pruneport.bench.law import FORMS, Check, Law, Point, best_kept, check_law, fit_law
from pruneport.bench.store import Finished
from pruneport.bench.study import Trial, names
from pruneport.errors import InputError

__all__ = ["advise", "summarise"]

_CLAIM = 0.2  # relative gain at low budgets, arXiv 2304.13164


def summarise(finished: Sequence[Finished], wanted: Sequence[Trial]) -> dict[str, Any]:
    """Everything that the study answers, as far as it has run.

    Returns:
        Plain data: ``networks`` with curves, frontier, areas, advice, laws and claims each; ``trials`` done, failed and
        wanted; versions and device of the machine that summarises, which need not have run the trials. What is not
        known, as a spread of one seed, is None.
    """
    of = cells(finished)
    short = names([*{trial.task for trial in wanted}, *{trial.network for trial in wanted}])
    done = {item.trial.key for item in finished if item.events}
    return {
        "format_version": 1,
        "trials": {
            "wanted": len(wanted),
            "done": sum(trial.key in done for trial in wanted),
            "failed": [{"trial": item.trial.key, "error": item.error} for item in finished if item.error is not None],
            "wall_s": round(sum(item.wall_s for item in finished), 1),
        },
        "networks": [_network(of, finished, name, short) for name in sorted({cell.network for cell in of})],
        "versions": library_versions(),
        "device": describe_device("cpu", 0),
    }


def _network(of: Sequence[Cell], finished: Sequence[Finished], network: str, short: dict[str, str]) -> dict[str, Any]:
    mine = [cell for cell in of if cell.network == network]
    tasks = sorted({cell.task for cell in mine})
    means = stream(mine, network)
    ways = sorted({cell.way for cell in mine}, key=lambda way: (-way.kept, way))
    sub_ways = sorted({(way.scope, way.recipe) for way in ways if way.kept < 1})
    return {
        "name": short[network],
        "tasks": [short[task] for task in tasks],
        "dense": any(way.kept == 1 for way, _ in means),
        "curves": [
            {
                "task": short[task],
                **way._asdict(),
                "points": [
                    {"budget": cell.budget, "error": cell.mean, "spread": cell.spread, "seeds": len(cell.errors)}
                    for cell in curve(mine, network, task, way)
                ],
            }
            for task in tasks
            for way in ways
        ],
        "stream": [
            {
                **way._asdict(),
                "points": [
                    {"budget": budget, "error": value[0], "spread": value[1]}
                    for (one, budget), value in sorted(means.items())
                    if one == way
                ],
                "crossing": crossing(means, way) if way.kept < 1 else None,
            }
            for way in ways
        ],
        "frontier": {
            short[task]: [
                {"flops": flops, "error": error, **way._asdict()}
                for flops, error, way in frontier(finished, network, task)
            ]
            for task in tasks
        },
        "areas": [
            {"task": short.get(task, ""), **way._asdict(), "area": area}
            for task, found in areas(mine, network).items()
            for way, area in found.items()
        ],
        "low_budgets": [
            {
                "budget": budget,
                **way._asdict(),
                "accuracy": pruned,
                "dense_accuracy": dense,
                "gain": pruned / dense - 1 if dense else None,
                "deviation": spread,
                "claimed": pruned > (1 + _CLAIM) * dense,
                "beyond_spread": None if spread is None else pruned - spread > (1 + _CLAIM) * dense,
            }
            for budget, way, pruned, dense, spread in low_budget_gain(mine, network)
        ],
        "laws": [_law(mine, means, scope, recipe) for scope, recipe in sub_ways],
        "scopes": _scopes(means),
    }


def _law(mine: Sequence[Cell], means: Means, scope: str, recipe: str) -> dict[str, Any]:
    """The best share measured at every budget; every form of the law, checked, and what the best of them advises."""
    points = _points(mine, scope, recipe)
    entry: dict[str, Any] = {"scope": scope, "recipe": recipe, "forms": []}
    law: Law | None = None
    try:
        laws, checks, chosen = _fit_all(points)
    except InputError as error:
        entry["error"] = str(error)
    else:
        entry["forms"] = [
            {"form": form, "rms": laws[form].rms, "parameters": laws[form].parameters, **_check(checks[form])}
            for form in laws
        ]
        entry["chosen"], law = chosen, laws[chosen]
    shares, best = sorted({point.kept for point in points}), measured(means, scope, recipe)
    entry["advice"] = [
        {
            "budget": budget,
            "measured": _least(best[budget]) if budget in best else None,
            "law": None if law is None else best_kept(law, shares, budget),
        }
        for budget in sorted({point.budget for point in points})
    ]
    return entry


def _fit_all(points: Sequence[Point]) -> tuple[dict[str, Law], dict[str, Check], str]:
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


def advise(finished: Sequence[Finished], budget: float, task: str | None, network: str | None) -> dict[str, Any]:
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
        raise InputError(f"--budget is {budget:g}; expected a finite number of training FLOPs above 0, such as 1e12.")
    chosen = _named(network, sorted({cell.network for cell in of}), "network", "--network")
    mine = [cell for cell in of if cell.network == chosen]
    only = _named(task, sorted({cell.task for cell in mine}), "task", "--task") if task else None
    ways = sorted({(cell.way.scope, cell.way.recipe) for cell in mine if cell.way.kept < 1})
    if not ways:
        raise InputError(f"only the dense network has results for {names([chosen])[chosen]}: let the study run on.")
    means = stream([cell for cell in mine if only in (None, cell.task)], chosen)
    answers = [_answer(mine, means, scope, recipe, budget, only) for scope, recipe in ways]
    known = [answer for answer in answers if answer["kept"] is not None]
    if not known:
        raise InputError(
            f"there is nothing to compare: with no budget have two shares of {names([chosen])[chosen]} results on "
            f"{'the task' if only else 'every task'}. Let the study run on, or give it more --kept."
        )
    best = min(known, key=lambda answer: (answer["law"] is None, answer["expected_error"]))
    return {"budget": budget, "network": chosen, "task": only, "advice": best, "others": known}


def _answer(
    mine: Sequence[Cell], means: Means, scope: str, recipe: str, budget: float, only: str | None
) -> dict[str, Any]:
    """What one way of pruning has to say; ``kept`` is None where that is nothing."""
    best = measured(means, scope, recipe)
    at = max((run for run in best if run <= budget), default=min(best, default=None))
    errors = {} if at is None else best[at]
    answer: dict[str, Any] = {"scope": scope, "recipe": recipe, "kept": _least(errors) if errors else None}
    answer["measured"] = {"budget": at, "kept": answer["kept"], "errors": _by_share(errors)} if errors else None
    points = _points(mine, scope, recipe)
    if only is not None and all(point.task != only for point in points):
        points = []
    try:
        laws, checks, form = _fit_all(points)
    except InputError as error:
        runs = sorted(best)
        answer |= {"predicted": {}, "law": None, "no_law": str(error)}
    else:
        law, runs = laws[form], sorted({point.budget for point in points})
        tasks = [only] if only else sorted(law.floors)
        shares = sorted({point.kept for point in points})
        errors = {share: float(np.mean([law.error(name, share, budget) for name in tasks])) for share in shares}
        answer |= {"kept": best_kept(law, shares, budget), "predicted": _by_share(errors), "law": form}
        answer |= _check(checks[form])
    answer["expected_error"] = errors.get(answer["kept"])
    answer["extrapolated"] = bool(runs) and not runs[0] <= budget <= runs[-1]
    return answer


def _by_share(errors: dict[float, float]) -> dict[str, float]:
    return {f"{share:g}": error for share, error in sorted(errors.items())}


def _least(errors: dict[float, float]) -> float:
    """The share with the least error; of equal ones the smallest."""
    return min(sorted(errors), key=lambda share: errors[share])


def _named(given: str | None, known: Sequence[str], what: str, flag: str) -> str:
    short = names(list(known))
    found = [name for name in known if given in (None, name, short[name])]
    if len(found) != 1:
        listed = ", ".join(short.values()) or "none yet"
        raise InputError(f"{flag} {given or 'was not given'}: expected one {what} of the study's ({listed}).")
    return found[0]


def _points(mine: Sequence[Cell], scope: str, recipe: str) -> list[Point]:
    return [
        Point(task=cell.task, kept=cell.way.kept, budget=cell.budget, error=cell.mean)
        for cell in mine
        if cell.way.kept == 1 or (cell.way.scope, cell.way.recipe) == (scope, recipe)
    ]


def _check(check: Check) -> dict[str, float | None]:
    return {
        "error_rms": check.error_rms,
        "regret": check.regret,
        "budget_regret": check.budget_regret,
        "dense_regret": check.dense_regret,
    }


def _scopes(means: Means) -> list[dict[str, Any]]:
    """Filters against channels at equal MACs: mean errors over tasks, and over the budgets that both have."""
    found = []
    for way in sorted({way for way, _ in means if way.scope == "filters" and way.kept < 1}, reverse=True):
        other = way._replace(scope="channels")
        budgets = sorted({at for one, at in means if one == way} & {at for one, at in means if one == other})
        if budgets:
            pairs = [(means[way, at], means[other, at]) for at in budgets]
            found.append(
                {
                    "kept": way.kept,
                    "recipe": way.recipe,
                    "budgets": len(budgets),
                    "filters": float(np.mean([one[0] for one, _ in pairs])),
                    "channels": float(np.mean([two[0] for _, two in pairs])),
                    "deviation": deviation([spread for pair in pairs for _, spread in pair], len(pairs)),
                }
            )
    return found
