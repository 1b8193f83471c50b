"""A study and its advice, for a person at a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from pruneport.bench.transfer.analysis.advice_records import MeasuredBest, WayAdvice
from pruneport.bench.transfer.analysis.law import Check
from pruneport.bench.transfer.report import claim
from pruneport.commands.arguments.flag_names import with_flags
from pruneport.commands.study_results import AdviceResult, TransferResult
from pruneport.commands.terminal.parts import new_table

__all__ = ["show_advice", "show_study"]


def show_study(result: TransferResult, console: Console) -> None:
    """Print areas under the curves, where dense overtakes, and what is said of the paper's claim."""
    trials = result.summary.trials
    for network in result.summary.networks:
        columns = [network.name, ">kept", ">area under the curve"]
        table = new_table(*columns, *([">dense is better from, FLOPs"] if network.dense else []))
        crossings = {(entry.scope, entry.recipe, entry.kept): entry for entry in network.stream}
        for row in network.areas:
            if not row.task:
                entry = crossings[row.scope, row.recipe, row.kept]
                crossing = "" if row.kept == 1 else "never" if entry.crossing is None else f"{entry.crossing:.2g}"
                way = "dense" if row.kept == 1 else f"{row.scope}, {row.recipe}"
                cells = (Text(way), f"{row.kept:.0%}", f"{row.area:.3f}")
                table.add_row(*cells, *([crossing] if network.dense else []))
        console.print(table)
        console.print(with_flags(claim(network)), markup=False, soft_wrap=True)
    for failure in trials.failed:
        console.print(f"failed: {with_flags(failure.error)}", markup=False, soft_wrap=True)
    console.print(f"{trials.done} of {trials.wanted} trials. Report: {result.report.resolve()}", markup=False)


def show_advice(result: AdviceResult, console: Console) -> None:
    """Print what to keep, the errors that speak for it, and what it rests on."""
    advice, budget = result.advice.advice, result.advice.budget
    task = result.advice.task or "a task like those of the study"
    console.print(
        f"With {budget:.3g} training FLOPs on {task}, keep {advice.kept:.0%} of the MACs "
        f"({advice.scope}, recipe {advice.recipe}).",
        markup=False,
        soft_wrap=True,
    )
    columns = {"predicted error": advice.predicted} if advice.law else {}
    if (found := advice.measured) is not None:
        columns[f"measured with {found.budget:.3g} FLOPs"] = found.errors
    table = new_table(">kept", *(f">{name}" for name in columns))
    for kept in sorted(set().union(*columns.values())):
        table.add_row(f"{kept:.0%}", *(f"{of[kept]:.1%}" if kept in of else "" for of in columns.values()))
    console.print(table)
    console.print(_evidence(advice, budget), markup=False, soft_wrap=True)


def _evidence(advice: WayAdvice, budget: float) -> str:
    """What the advice rests on, and how far that was checked."""
    if advice.check is not None:
        return _by_law(advice, advice.check)
    return "" if advice.measured is None else _by_measurement(advice, advice.measured, budget)


def _by_law(advice: WayAdvice, check: Check) -> str:
    """By a law."""
    if check.regret is None:
        said = f"By the law {advice.law!r}, not checked on another task."
    else:
        errs = "" if check.error_rms is None else f"it errs by {check.error_rms:.1%}, and "
        said = (
            f"By the law {advice.law!r}: on tasks it was not fitted on {errs}its share costs {check.regret:.1%} "
            "more error than the best"
            + ("." if check.dense_regret is None else f"; always dense costs {check.dense_regret:.1%}.")
        )
    return said + (" The budget lies outside the study's." if advice.extrapolated else "")


def _by_measurement(advice: WayAdvice, measured: MeasuredBest, budget: float) -> str:
    """By what was measured at another budget or at this one."""
    run = measured.budget
    where = "that budget" if run == budget else "the nearest budget run at or below it"
    if run > budget:
        where = "the smallest budget run, which is above it"
    return f"The best measured with {run:.3g} FLOPs, {where}. No law: {with_flags(advice.no_law)}"
