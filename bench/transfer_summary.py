"""A study in numbers: what the report shows and what is committed beside it, as plain data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pruneport.bench.devices import describe_device, library_versions
from pruneport.bench.frontier import Cell, Way, areas, cells, crossing, curve, frontier, low_budget_gain, stream
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
        wanted; versions and device.
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
                "gain": pruned / dense - 1 if dense else math.inf,
                "deviation": deviation,
                "claimed": pruned > (1 + _CLAIM) * dense,
                "beyond_spread": pruned - deviation > (1 + _CLAIM) * dense,
            }
            for budget, way, pruned, dense, deviation in low_budget_gain(mine, network)
        ],
        "laws": [_law(mine, scope, recipe) for scope, recipe in sub_ways],
        "scopes": _scopes(means),
    }


def _law(mine: Sequence[Cell], scope: str, recipe: str) -> dict[str, Any]:
    """Every form, checked on tasks and a budget that it was not fitted on, and what the best of them advises."""
    points = _points(mine, scope, recipe)
    entry: dict[str, Any] = {"scope": scope, "recipe": recipe, "forms": [], "advice": []}
    checks: list[Check] = []
    laws: dict[str, Law] = {}
    for form in FORMS:
        try:
            check, laws[form] = check_law(points, form), fit_law(points, form)
        except InputError as error:
            entry["error"] = str(error)
            return entry
        checks.append(check)
        entry["forms"].append(
            {"form": form, "rms": laws[form].rms, "parameters": laws[form].parameters, **_check(check)}
        )
    chosen = _best(checks).form
    law, shares = laws[chosen], sorted({point.kept for point in points})
    entry["chosen"] = chosen
    for budget in sorted({point.budget for point in points}):
        by_share = {
            share: float(np.mean([p.error for p in points if p.kept == share and p.budget == budget]))
            for share in shares
            if any(p.kept == share and p.budget == budget for p in points)
        }
        measured = min(by_share, key=lambda share: by_share[share])
        entry["advice"].append({"budget": budget, "measured": measured, "law": best_kept(law, shares, budget)})
    return entry


def advise(finished: Sequence[Finished], budget: float, task: str | None, network: str | None) -> dict[str, Any]:
    """For a budget, the share of the MACs to keep, with the evidence.

    Args:
        finished: The study's trials.
        budget: Training FLOPs.
        task: One of the study's, or None for one like them.
        network: One of the study's; needed where it has several.

    Raises:
        InputError: No such task or network, several networks and none named, or too few results.
    """
    of = cells(finished)
    if not budget > 0:
        raise InputError(f"--budget is {budget:g}; expected training FLOPs above 0, such as 1e12.")
    chosen = _named(network, sorted({cell.network for cell in of}), "network", "--network")
    mine = [cell for cell in of if cell.network == chosen]
    only = _named(task, sorted({cell.task for cell in mine}), "task", "--task") if task else None
    answers: list[dict[str, Any]] = []
    for scope, recipe in sorted({(cell.way.scope, cell.way.recipe) for cell in mine if cell.way.kept < 1}):
        points = _points(mine, scope, recipe)
        checks = [check_law(points, form) for form in FORMS]
        check = _best(checks)
        law, shares = fit_law(points, check.form), sorted({point.kept for point in points})
        tasks = [only] if only else sorted(law.floors)
        answers.append(
            {
                "scope": scope,
                "recipe": recipe,
                "kept": best_kept(law, shares, budget),
                "predicted": {
                    f"{share:g}": float(np.mean([law.error(name, share, budget) for name in tasks])) for share in shares
                },
                "law": check.form,
                **_check(check),
                "extrapolated": not min(p.budget for p in points) <= budget <= max(p.budget for p in points),
            }
        )
    if not answers:
        raise InputError(f"only the dense network has results for {names([chosen])[chosen]}: let the study run on.")
    best = min(answers, key=lambda answer: min(answer["predicted"].values()))
    return {"budget": budget, "network": chosen, "task": only, "advice": best, "others": answers}


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


def _best(checks: Sequence[Check]) -> Check:
    """The form whose advice costs least on tasks that it was not fitted on; of equal ones the better predictor."""
    return min(checks, key=lambda check: (round(check.regret, 4), check.error_rms))


def _check(check: Check) -> dict[str, float]:
    return {
        "error_rms": check.error_rms,
        "regret": check.regret,
        "budget_regret": check.budget_regret,
        "dense_regret": check.dense_regret,
    }


def _scopes(means: dict[tuple[Way, float], tuple[float, float]]) -> list[dict[str, Any]]:
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
                    "deviation": math.sqrt(sum(one[1] ** 2 + two[1] ** 2 for one, two in pairs)) / len(pairs),
                }
            )
    return found
