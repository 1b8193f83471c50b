"""Results as tables for a person at a terminal."""

from __future__ import annotations

from functools import singledispatch
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from pruneport.commands.arguments.flag_names import with_flags
from pruneport.commands.results import (
    BenchResult,
    CompressResult,
    ExportResult,
    FinetuneResult,
    InspectResult,
    LatencyResult,
    PushResult,
    ShipResult,
    VerifyResult,
)
from pruneport.commands.study_results import AdviceResult, SweepResult, TransferResult
from pruneport.commands.terminal.parts import (
    add_fitting,
    count,
    new_table,
    show_bench,
    show_plan,
    show_precisions,
    show_verification,
    shown_width,
    warn,
)
from pruneport.commands.terminal.study import show_advice, show_study
from pruneport.commands.terminal.sweep import show_sweep
from pruneport.compress.group_records import scope_in_files

if TYPE_CHECKING:
    from pruneport.compress.assessment import GroupView

__all__ = ["show"]

_BRANCHES = 6  # that are named


@singledispatch
def show(result: Any, console: Console) -> None:
    """Print a verb's result."""
    raise TypeError(f"no table for a {type(result).__name__}")


@show.register
def _(result: InspectResult, console: Console) -> None:
    measured = result.plot is not None
    columns = ("group", ">width", "scope", ">MACs", ">params", ">members", "prunable")
    table = new_table(*columns, *([">error at half"] if measured else []), one_line=True)
    reasons: list[str] = []
    rows = []
    for view in result.groups:
        if view.reason and view.reason not in reasons:
            reasons.append(view.reason)
        cells = (
            shown_width(view.group, view.group.width),
            scope_in_files(view.group.role),
            count(view.cost.macs),
            count(view.cost.params),
            str(len(view.group.members)),
            f"no ({reasons.index(view.reason) + 1})" if view.reason else "yes",
            *([_error_at_half(view)] if measured else []),
        )
        rows.append((view.group.name, *cells))
    add_fitting(table, rows, console.width)
    console.print(table, crop=False, soft_wrap=True)
    for number, reason in enumerate(reasons, start=1):
        console.print(f"({number}) {with_flags(reason)}", markup=False, soft_wrap=True)
    console.print(
        f"{result.source}: {len(result.groups)} groups, {count(result.dense.macs)} MACs, "
        f"{count(result.dense.params)} parameters; prunable in scope {result.scope}",
        markup=False,
        soft_wrap=True,
    )
    branches = list(dict.fromkeys(view.branch for view in result.groups if view.branch))
    if branches:
        shown = ", ".join(branches[:_BRANCHES]) + (", …" if len(branches) > _BRANCHES else "")
        console.print(
            f"Residual branches that --depth auto may drop: {len(branches)} ({shown})", markup=False, soft_wrap=True
        )
    if result.members:
        for view in result.groups:
            members = ", ".join(f"{member.module} {member.axis}" for member in view.group.members)
            console.print(f"{view.group.name}: {members}", markup=False, soft_wrap=True)
    else:
        console.print("The members of every group: --members")
    if measured:
        console.print(
            "Error at half: mean squared change of the outputs over their variance, with half of the group removed "
            f"and its consumers solved anew. All curves: {result.plot}",
            markup=False,
            soft_wrap=True,
        )
    if result.graph is not None:
        console.print(f"The groups, drawn: {result.graph}", markup=False, soft_wrap=True)


@show.register
def _(result: CompressResult, console: Console) -> None:
    show_plan(result.plan, console, every_group=True)
    warn(result.warnings, console)
    console.print(f"Bundle: {result.folder}. Next: pruneport export {result.folder}", markup=False, soft_wrap=True)


@show.register
def _(result: LatencyResult, console: Console) -> None:
    table, stairs = result.table, result.table.staircase
    shares = [entry.share for entry in table.timings]
    steps = {"convolutions": stairs.convolution, "depthwise ones": stairs.depthwise}
    said = ", ".join(f"{step or 'none'} for {kind}" for kind, step in steps.items())
    console.print(
        f"{table.source}: {table.dense_ms:.4g} ms ({table.clock}) on {table.place}; {len(shares)} networks timed, from "
        f"{min(shares):.3f} to {max(shares):.3f} of that. Step of widths: {said}.",
        markup=False,
        soft_wrap=True,
    )
    console.print(
        f"Table: {result.file}. Next: pruneport ship … --latency 0.5 --latency-table {result.file}",
        markup=False,
        soft_wrap=True,
    )


@show.register
def _(result: ExportResult, console: Console) -> None:
    table = new_table("file", ">size")
    for name, size in result.files.items():
        table.add_row(name, f"{size / 1e6:.2f} MB")
    console.print(table)
    console.print(f"Next: pruneport verify {result.folder}; pruneport bench {result.folder}", markup=False)


@show.register
def _(result: PushResult, console: Console) -> None:
    table = new_table("file", ">size")
    for name, size in result.files.items():
        table.add_row(Text(name), f"{size / 1e6:.2f} MB")
    console.print(table)
    kind = "Private" if result.private else "Public"
    console.print(f"{kind} repository: {result.url}", markup=False, soft_wrap=True)
    console.print(f'In Python: pruneport.load("{result.name}")', markup=False, soft_wrap=True)


@show.register
def _(result: FinetuneResult, console: Console) -> None:
    table = new_table(">step", ">training FLOPs", ">MACs", ">loss", ">top-1", ">seconds")
    for event in result.events:
        macs = count(event.macs)
        table.add_row(
            str(event.step),
            f"{event.flops:.3g}",
            macs,
            f"{event.loss:.3f}",
            f"{1 - event.error:.2%}",
            f"{event.seconds:.0f}",
        )
    console.print(table)
    show_plan(result.plan, console, every_group=False)
    console.print(f"Bundle: {result.folder}. Next: pruneport export {result.folder}", markup=False, soft_wrap=True)


@show.register
def _(result: VerifyResult, console: Console) -> None:
    show_verification(result.verification, console)
    show_precisions(result.verification.to_dict(), None, console)
    warn(result.warnings, console)
    where = "verify.json in the bundle" if result.recorded else "not recorded: the bundle cannot be written"
    console.print(f"Verified; {where}.")


@show.register
def _(result: BenchResult, console: Console) -> None:
    show_bench(result.bench, console)
    show_precisions(None, result.bench.to_dict(), console)
    warn(result.warnings, console)


@show.register
def _(result: ShipResult, console: Console) -> None:
    show_plan(result.plan, console, every_group=False)
    show_verification(result.verification, console)
    show_bench(result.bench, console)
    verified, timed = result.verification.to_dict(), result.bench.to_dict()
    show_precisions(verified, timed, console, trained=result.plan.trained)
    warn(result.warnings, console)
    report = result.report.resolve()
    console.print(f"Report: {report}", markup=False, soft_wrap=True)
    console.print(f"Open it with: python -m webbrowser {report.as_uri()}", markup=False, soft_wrap=True)


show.register(SweepResult, show_sweep)
show.register(TransferResult, show_study)
show.register(AdviceResult, show_advice)


def _error_at_half(view: GroupView) -> str:
    if view.curve is None:
        return ""
    nearest = abs(view.curve.widths - view.group.width / 2).argmin()
    return f"{view.curve.output_error[nearest]:.2g}"
