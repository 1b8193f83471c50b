"""A study in numbers: what the report shows and what is committed beside it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pruneport.bench.devices import describe_device, latency_versions
from pruneport.bench.transfer.analysis.advice import fit_all, least, points_of
from pruneport.bench.transfer.analysis.curves import (
    Cell,
    Means,
    Way,
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
from pruneport.bench.transfer.analysis.law import Law, best_macs_kept
from pruneport.bench.transfer.analysis.records import (
    AdviceAtBudget,
    Area,
    FailedTrial,
    FittedForm,
    FrontierPoint,
    LawSummary,
    LowBudget,
    MeanCurve,
    MeanPoint,
    NetworkSummary,
    ScopeComparison,
    Summary,
    TaskCurve,
    TaskPoint,
    TrialCounts,
    figures_of,
)
from pruneport.bench.transfer.store import Finished
from pruneport.bench.transfer.study import Trial, names
from pruneport.errors import InputError

__all__ = ["summarise"]

_CLAIM = 0.2  # relative gain at low budgets, arXiv 2304.13164


def summarise(finished: Sequence[Finished], wanted: Sequence[Trial]) -> Summary:
    """Everything that the study answers, as far as it has run.

    Args:
        finished: Trials that have run.
        wanted: All trials of the study.
    """
    of = cells(finished)
    short = names([*{trial.task for trial in wanted}, *{trial.network for trial in wanted}])
    done = {item.trial.key for item in finished if item.events}
    failed = [FailedTrial(trial=item.trial.key, error=item.error) for item in finished if item.error is not None]
    return Summary(
        trials=TrialCounts(
            wanted=len(wanted),
            done=sum(trial.key in done for trial in wanted),
            failed=tuple(failed),
            wall_s=round(sum(item.wall_s for item in finished), 1),
        ),
        networks=tuple(_network(of, finished, name, short) for name in sorted({cell.network for cell in of})),
        versions=latency_versions(),
        device=describe_device("cpu", 0),
    )


def _network(of: Sequence[Cell], finished: Sequence[Finished], network: str, short: dict[str, str]) -> NetworkSummary:
    """All that the study says of one network."""
    mine = [cell for cell in of if cell.network == network]
    tasks = sorted({cell.task for cell in mine})
    means = stream(mine, network)
    ways = sorted({cell.way for cell in mine}, key=lambda way: (-way.kept, way))
    pruned_ways = sorted({(way.scope, way.recipe) for way in ways if way.kept < 1})
    return NetworkSummary(
        name=short[network],
        tasks=tuple(short[task] for task in tasks),
        dense=any(way.kept == 1 for way, _ in means),
        curves=tuple(
            TaskCurve(task=short[task], **way._asdict(), points=_points(curve(mine, network, task, way)))
            for task in tasks
            for way in ways
        ),
        stream=tuple(_mean_curve(means, way) for way in ways),
        frontier={
            short[task]: tuple(
                FrontierPoint(flops=flops, error=error, **way._asdict())
                for flops, error, way in frontier(finished, network, task)
            )
            for task in tasks
        },
        areas=tuple(
            Area(task=short.get(task, ""), **way._asdict(), area=area)
            for task, found in areas(mine, network).items()
            for way, area in found.items()
        ),
        low_budgets=_low_budgets(mine, network),
        laws=tuple(_law(mine, means, scope, recipe) for scope, recipe in pruned_ways),
        scopes=_scopes(means),
    )


def _points(line: Sequence[Cell]) -> tuple[TaskPoint, ...]:
    return tuple(
        TaskPoint(budget=cell.budget, error=cell.mean, spread=cell.spread, seeds=len(cell.errors)) for cell in line
    )


def _mean_curve(means: Means, way: Way) -> MeanCurve:
    """Mean errors over the tasks by budget, and where the dense network overtakes."""
    points = tuple(
        MeanPoint(budget=budget, error=error, spread=spread)
        for (one, budget), (error, spread) in sorted(means.items())
        if one == way
    )
    return MeanCurve(**way._asdict(), points=points, crossing=crossing(means, way) if way.kept < 1 else None)


def _low_budgets(mine: Sequence[Cell], network: str) -> tuple[LowBudget, ...]:
    """Pruned against dense at low budgets, and whether that is what the paper claims."""
    return tuple(
        LowBudget(
            budget=budget,
            **way._asdict(),
            accuracy=pruned,
            dense_accuracy=dense,
            gain=pruned / dense - 1 if dense else None,
            deviation=spread,
            claimed=pruned > (1 + _CLAIM) * dense,
            beyond_spread=None if spread is None else pruned - spread > (1 + _CLAIM) * dense,
        )
        for budget, way, pruned, dense, spread in low_budget_gain(mine, network)
    )


def _law(mine: Sequence[Cell], means: Means, scope: str, recipe: str) -> LawSummary:
    """The best share measured at every budget; every form of the law, checked, and what the best of them advises."""
    points = points_of(mine, scope, recipe)
    forms: tuple[FittedForm, ...] = ()
    law: Law | None = None
    refused = None
    try:
        laws, checks, chosen = fit_all(points)
    except InputError as error:
        refused = str(error)
    else:
        law = laws[chosen]
        forms = tuple(
            FittedForm(form=form, rms=fit.rms, parameters=fit.parameters, **figures_of(checks[form]))
            for form, fit in laws.items()
        )
    shares, best = sorted({point.macs_kept for point in points}), measured(means, scope, recipe)
    advice = tuple(
        AdviceAtBudget(
            budget=budget,
            measured=least(best[budget]) if budget in best else None,
            law=None if law is None else best_macs_kept(law, shares, budget),
        )
        for budget in sorted({point.budget for point in points})
    )
    chosen_form = None if law is None else law.form
    return LawSummary(scope=scope, recipe=recipe, forms=forms, chosen=chosen_form, error=refused, advice=advice)


def _scopes(means: Means) -> tuple[ScopeComparison, ...]:
    """Filters against channels at equal MACs: mean errors over tasks, and over the budgets that both have."""
    found = []
    for way in sorted({way for way, _ in means if way.scope == "filters" and way.kept < 1}, reverse=True):
        other = way._replace(scope="channels")
        budgets = sorted({at for one, at in means if one == way} & {at for one, at in means if one == other})
        if budgets:
            pairs = [(means[way, at], means[other, at]) for at in budgets]
            found.append(
                ScopeComparison(
                    kept=way.kept,
                    recipe=way.recipe,
                    budgets=len(budgets),
                    filters=float(np.mean([one[0] for one, _ in pairs])),
                    channels=float(np.mean([two[0] for _, two in pairs])),
                    deviation=deviation([spread for pair in pairs for _, spread in pair], len(pairs)),
                )
            )
    return tuple(found)
