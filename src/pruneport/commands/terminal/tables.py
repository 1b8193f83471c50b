"""Results as tables for a person at a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import singledispatch
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pruneport.bench.transfer.report import claim
from pruneport.commands.flag_names import with_flags
from pruneport.commands.results import (
    AdviceResult,
    BenchResult,
    CompressResult,
    ExportResult,
    FinetuneResult,
    InspectResult,
    PushResult,
    ShipResult,
    TransferResult,
    VerifyResult,
)
from pruneport.compress.assessment import GroupView
from pruneport.compress.graph.groups import Group
from pruneport.compress.records import scope_in_files
from pruneport.compress.surgery.plan import GroupPlan, Plan
from pruneport.export.card.intervals import share_interval
from pruneport.export.card.summary import recovery_figures, shorten
from pruneport.export.parity import TOLERANCES
from pruneport.export.verify import Verification
from pruneport.units import scaled

__all__ = ["show"]

_LEAST_NAME = 12  # characters of a name, however narrow the console is


@singledispatch
def show(result: Any, console: Console) -> None:
    """Print a verb's result."""
    raise TypeError(f"no table for a {type(result).__name__}")


@show.register
def _(result: InspectResult, console: Console) -> None:
    measured = result.plot is not None
    columns = ("group", ">width", "scope", ">MACs", ">params", ">members", "prunable")
    table = _table(*columns, *([">error at half"] if measured else []), one_line=True)
    reasons: list[str] = []
    rows = []
    for view in result.groups:
        if view.reason and view.reason not in reasons:
            reasons.append(view.reason)
        cells = (
            _width(view.group, view.group.width),
            scope_in_files(view.group.role),
            _count(view.cost.macs),
            _count(view.cost.params),
            str(len(view.group.members)),
            f"no ({reasons.index(view.reason) + 1})" if view.reason else "yes",
            *([_error_at_half(view)] if measured else []),
        )
        rows.append((view.group.name, *cells))
    _add_fitting(table, rows, console.width)
    console.print(table, crop=False, soft_wrap=True)
    for number, reason in enumerate(reasons, start=1):
        console.print(f"({number}) {with_flags(reason)}", markup=False, soft_wrap=True)
    console.print(
        f"{result.source}: {len(result.groups)} groups, {_count(result.dense.macs)} MACs, "
        f"{_count(result.dense.params)} parameters; prunable in scope {result.scope}",
        markup=False,
        soft_wrap=True,
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
    _show_plan(result.plan, console, every_group=True)
    _warn(result.warnings, console)
    console.print(f"Bundle: {result.folder}. Next: pruneport export {result.folder}", markup=False, soft_wrap=True)


@show.register
def _(result: ExportResult, console: Console) -> None:
    table = _table("file", ">size")
    for name, size in result.files.items():
        table.add_row(name, f"{size / 1e6:.2f} MB")
    console.print(table)
    console.print(f"Next: pruneport verify {result.folder}; pruneport bench {result.folder}", markup=False)


@show.register
def _(result: PushResult, console: Console) -> None:
    table = _table("file", ">size")
    for name, size in result.files.items():
        table.add_row(Text(name), f"{size / 1e6:.2f} MB")
    console.print(table)
    kind = "Private" if result.private else "Public"
    console.print(f"{kind} repository: {result.url}", markup=False, soft_wrap=True)
    console.print(f'In Python: pruneport.load("{result.name}")', markup=False, soft_wrap=True)


@show.register
def _(result: FinetuneResult, console: Console) -> None:
    table = _table(">step", ">training FLOPs", ">MACs", ">loss", ">top-1", ">seconds")
    for event in result.events:
        macs = _count(event.macs)
        table.add_row(
            str(event.step),
            f"{event.flops:.3g}",
            macs,
            f"{event.loss:.3f}",
            f"{1 - event.error:.2%}",
            f"{event.seconds:.0f}",
        )
    console.print(table)
    _show_plan(result.plan, console, every_group=False)
    console.print(f"Bundle: {result.folder}. Next: pruneport export {result.folder}", markup=False, soft_wrap=True)


@show.register
def _(result: VerifyResult, console: Console) -> None:
    _show_verification(result.verification, console)
    _warn(result.warnings, console)
    where = "verify.json in the bundle" if result.recorded else "not recorded: the bundle cannot be written"
    console.print(f"Verified; {where}.")


@show.register
def _(result: BenchResult, console: Console) -> None:
    _show_bench(result.bench, console)
    _warn(result.warnings, console)


@show.register
def _(result: ShipResult, console: Console) -> None:
    _show_plan(result.plan, console, every_group=False)
    _show_verification(result.verification, console)
    _show_bench(result.bench, console)
    _warn(result.warnings, console)
    report = result.report.resolve()
    console.print(f"Report: {report}", markup=False, soft_wrap=True)
    console.print(f"Open it with: python -m webbrowser {report.as_uri()}", markup=False, soft_wrap=True)


@show.register
def _(result: TransferResult, console: Console) -> None:
    trials = result.summary["trials"]
    for network in result.summary["networks"]:
        columns = [network["name"], ">kept", ">area under the curve"]
        table = _table(*columns, *([">dense is better from, FLOPs"] if network["dense"] else []))
        crossings = {(entry["scope"], entry["recipe"], entry["kept"]): entry for entry in network["stream"]}
        for row in network["areas"]:
            if not row["task"]:
                entry = crossings[row["scope"], row["recipe"], row["kept"]]
                crossing = (
                    "" if row["kept"] == 1 else "never" if entry["crossing"] is None else f"{entry['crossing']:.2g}"
                )
                way = "dense" if row["kept"] == 1 else f"{row['scope']}, {row['recipe']}"
                cells = (Text(way), f"{row['kept']:.0%}", f"{row['area']:.3f}")
                table.add_row(*cells, *([crossing] if network["dense"] else []))
        console.print(table)
        console.print(with_flags(claim(network)), markup=False, soft_wrap=True)
    for failure in trials["failed"]:
        console.print(f"failed: {with_flags(failure['error'])}", markup=False, soft_wrap=True)
    console.print(f"{trials['done']} of {trials['wanted']} trials. Report: {result.report.resolve()}", markup=False)


@show.register
def _(result: AdviceResult, console: Console) -> None:
    advice, budget = result.advice["advice"], result.advice["budget"]
    task = result.advice["task"] or "a task like those of the study"
    console.print(
        f"With {budget:.3g} training FLOPs on {task}, keep {advice['kept']:.0%} of the MACs "
        f"({advice['scope']}, recipe {advice['recipe']}).",
        markup=False,
        soft_wrap=True,
    )
    columns = {"predicted error": advice["predicted"]} if advice["law"] else {}
    if (found := advice["measured"]) is not None:
        columns[f"measured with {found['budget']:.3g} FLOPs"] = found["errors"]
    table = _table(">kept", *(f">{name}" for name in columns))
    for kept in sorted(set().union(*columns.values()), key=float):
        table.add_row(f"{float(kept):.0%}", *(f"{of[kept]:.1%}" if kept in of else "" for of in columns.values()))
    console.print(table)
    console.print(_by_law(advice) if advice["law"] else _by_measurement(advice, budget), markup=False, soft_wrap=True)


def _by_law(advice: Any) -> str:
    """What the advice rests on, and how far that was checked."""
    if advice["regret"] is None:
        said = f"By the law {advice['law']!r}, not checked on another task."
    else:
        errs = "" if advice["error_rms"] is None else f"it errs by {advice['error_rms']:.1%}, and "
        said = (
            f"By the law {advice['law']!r}: on tasks it was not fitted on {errs}its share costs {advice['regret']:.1%} "
            "more error than the best"
            + ("." if advice["dense_regret"] is None else f"; always dense costs {advice['dense_regret']:.1%}.")
        )
    return said + (" The budget lies outside the study's." if advice["extrapolated"] else "")


def _by_measurement(advice: Any, budget: float) -> str:
    run = advice["measured"]["budget"]
    where = "that budget" if run == budget else "the nearest budget run at or below it"
    if run > budget:
        where = "the smallest budget run, which is above it"
    return f"The best measured with {run:.3g} FLOPs, {where}. No law: {with_flags(advice['no_law'])}"


def _inputs(plan: Plan) -> str:
    synthetic = plan.calibration is not None and plan.calibration.inputs == "synthetic"
    return "synthetic inputs" if synthetic else "images"


def _width(group: Group | GroupPlan, width: int) -> str:
    return f"{width} heads" if group.whole_attention_heads else str(width)


def _error_at_half(view: GroupView) -> str:
    if view.curve is None:
        return ""
    nearest = abs(view.curve.widths - view.group.width / 2).argmin()
    return f"{view.curve.output_error[nearest]:.2g}"


def _show_plan(plan: Plan, console: Console, *, every_group: bool) -> None:
    if every_group:
        table = _table("group", ">dense", ">asked", ">kept", "why")
        for group in plan.groups:
            why = Text(with_flags(group.reason))
            widths = (str(group.width), f"{group.asked:.1f}", _width(group, group.kept_width))
            table.add_row(Text(group.name), *widths, why)
        console.print(table)
    table = _table("", ">dense", ">pruned", ">kept")
    for name, dense, pruned, share in (
        ("MACs", plan.dense.macs, plan.pruned.macs, plan.macs_kept),
        ("parameters", plan.dense.params, plan.pruned.params, plan.params_kept),
    ):
        table.add_row(name, _count(dense), _count(pruned), f"{share:.1%}")
    console.print(table)
    if plan.recovery is not None:
        done = plan.recovery
        kind = "No recovery, measured" if done.name == "none" else f"Recovery {done.name}"
        console.print(
            f"{kind} on {done.images} {_inputs(plan)}. {recovery_figures(asdict(done))}", markup=False, soft_wrap=True
        )
    if plan.note:
        console.print(f"Note: {with_flags(plan.note)}", markup=False, soft_wrap=True)
    if not plan.trained:
        console.print(
            "No --checkpoint and no --weights were given: latency is meaningful, accuracy is not, unless the source "
            "itself loads trained weights."
        )


def _show_verification(verification: Verification, console: Console) -> None:
    for check in verification.checks:
        console.print(
            f"{'ok' if check.ok else 'FAILED'}  {check.name}: {with_flags(check.detail)}", markup=False, soft_wrap=True
        )
    table = _table("parity", "inputs", ">batch", ">max error", ">relative", ">same top-1", "ok")
    for entry in verification.parity:
        table.add_row(
            f"{entry.network} {entry.precision}",
            entry.inputs,
            str(entry.batch),
            *("-" if error is None else f"{error:.1e}" for error in (entry.max_abs_error, entry.max_rel_error)),
            "" if entry.top1_agreement is None else f"{entry.top1_agreement:.1%}",
            "yes" if entry.ok else "NO",
        )
    console.print(table)
    for precision, tolerance in TOLERANCES.items():
        console.print(
            f"Tolerance for {precision}: {tolerance.atol:g} + {tolerance.rtol:g} x the largest output", markup=False
        )
    if verification.accuracy is not None:
        accuracy = verification.accuracy
        table = _table(f"top-1 on {accuracy.images} images of {accuracy.folder}", ">top-1", ">95 % interval")
        for name, share in (
            ("dense", accuracy.dense_torch),
            ("pruned", accuracy.pruned_torch),
            ("pruned ONNX", accuracy.pruned_onnx),
        ):
            if share is not None:
                table.add_row(name, *_top1(share, accuracy.images))
        console.print(table)
    if (agreement := verification.agreement) is not None:
        said = f"The pruned network's first choice is the dense network's on {agreement.top1:.2%} of {agreement.images}"
        console.print(f"{said} images of {agreement.folder}", markup=False, soft_wrap=True)


def _top1(share: float, images: int) -> tuple[str, str]:
    low, high = share_interval(share * images, images)
    return f"{share:.2%}", f"{low:.1%} to {high:.1%}"


def _warn(warnings: Iterable[str], console: Console) -> None:
    for warning in warnings:
        console.print(Text.assemble(("Warning: ", "bold yellow"), with_flags(warning)), soft_wrap=True)


def _show_bench(bench: Any, console: Console) -> None:
    table = _table(f"{bench['provider']}, ms", ">dense p50", ">pruned p50", ">p90", ">p99", ">images/s", ">speed-up")
    for entry in bench["batches"]:
        dense, pruned, speedup = entry["dense"], entry["pruned"], entry["speedup"]
        table.add_row(
            f"batch {entry['batch']}",
            *(f"{value:.3g}" for value in (dense["p50_ms"], pruned["p50_ms"], pruned["p90_ms"], pruned["p99_ms"])),
            f"{pruned['images_per_s']:.3g}",
            f"{speedup['ratio']:.2f}x ({speedup['low']:.2f}-{speedup['high']:.2f})",
        )
    console.print(table)


def _table(*columns: str, one_line: bool = False) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        right = column.startswith(">")
        overflow: Literal["ellipsis", "fold"] = "ellipsis" if one_line else "fold"
        name, justify = column.lstrip(">"), "right" if right else "left"
        table.add_column(name, justify=justify, overflow=overflow, no_wrap=one_line)  # type: ignore[arg-type]
    return table


def _add_fitting(table: Table, rows: Sequence[tuple[str, ...]], width: int) -> None:
    """Add rows, their first cells cut in the middle to what the console leaves beside the others, which are whole."""
    titles = [str(column.header) for column in table.columns]
    others = [max(len(row[place]) for row in (titles, *rows)) for place in range(1, len(titles))]
    room = width - sum(others) - 2 * len(others)
    for column, needed in zip(table.columns[1:], others, strict=True):
        column.min_width = needed
    for name, *cells in rows:
        table.add_row(Text(shorten(name, max(_LEAST_NAME, room))), *cells)


def _count(number: int) -> str:
    return scaled(number, digits=".3g")
