"""A study in numbers: what the report shows and what is committed beside it, as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pruneport.bench.devices import describe_device, latency_versions
from pruneport.bench.transfer.advice import figures_of, fit_all, least, points_of
from pruneport.bench.transfer.curves import (
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
from pruneport.bench.transfer.law import Law, best_macs_kept
from pruneport.bench.transfer.store import Finished
from pruneport.bench.transfer.study import Trial, names
from pruneport.errors import InputError

__all__ = ["summarise"]

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
        "versions": latency_versions(),
        "device": describe_device("cpu", 0),
    }


def _network(of: Sequence[Cell], finished: Sequence[Finished], network: str, short: dict[str, str]) -> dict[str, Any]:
    """All that the study says of one network."""
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
    points = points_of(mine, scope, recipe)
    entry: dict[str, Any] = {"scope": scope, "recipe": recipe, "forms": []}
    law: Law | None = None
    try:
        laws, checks, chosen = fit_all(points)
    except InputError as error:
        entry["error"] = str(error)
    else:
        entry["forms"] = [
            {"form": form, "rms": laws[form].rms, "parameters": laws[form].parameters, **figures_of(checks[form])}
            for form in laws
        ]
        entry["chosen"], law = chosen, laws[chosen]
    shares, best = sorted({point.macs_kept for point in points}), measured(means, scope, recipe)
    entry["advice"] = [
        {
            "budget": budget,
            "measured": least(best[budget]) if budget in best else None,
            "law": None if law is None else best_macs_kept(law, shares, budget),
        }
        for budget in sorted({point.budget for point in points})
    ]
    return entry


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
