"""The parts that several results are shown by: a table, a plan, a verification, latencies, warnings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pruneport.bench.latency.records import Measured
from pruneport.commands.arguments.flag_names import with_flags
from pruneport.compress.graph.groups import Group
from pruneport.compress.surgery.plan import GroupPlan, Plan
from pruneport.documents import Json
from pruneport.export.card.intervals import share_interval
from pruneport.export.card.precisions import precision_columns, precision_notes, precision_rows
from pruneport.export.card.provenance import recovery_figures
from pruneport.export.card.words import matched, shorten
from pruneport.export.parity import Parity
from pruneport.export.verification import Verification
from pruneport.units import scaled

__all__ = [
    "add_fitting",
    "count",
    "new_table",
    "show_bench",
    "show_plan",
    "show_precisions",
    "show_verification",
    "shown_width",
    "warn",
]

_LEAST_NAME = 12  # characters of a name, however narrow the console is


def show_plan(plan: Plan, console: Console, *, every_group: bool) -> None:
    """Print what was removed, at what cost, and what a recovery brought."""
    if every_group:
        table = new_table("group", ">dense", ">asked", ">kept", "why")
        for group in plan.groups:
            why = Text(with_flags(group.reason))
            widths = (str(group.width), f"{group.asked:.1f}", shown_width(group, group.kept_width))
            table.add_row(Text(group.name), *widths, why)
        console.print(table)
    if plan.branches:
        table = new_table("dropped branch", ">MACs", ">parameters", "why")
        for branch in plan.branches:
            table.add_row(Text(branch.name), count(branch.macs), count(branch.params), Text(with_flags(branch.reason)))
        console.print(table)
    table = new_table("", ">dense", ">pruned", ">kept")
    for name, dense, pruned, share in (
        ("MACs", plan.dense.macs, plan.pruned.macs, plan.macs_kept),
        ("parameters", plan.dense.params, plan.pruned.params, plan.params_kept),
    ):
        table.add_row(name, count(dense), count(pruned), f"{share:.1%}")
    if (reached := plan.latency) is not None:
        best = reached.rounds[reached.chosen]
        name = f"latency, batch {reached.batch}{'' if reached.precision == 'fp32' else f', {reached.precision}'}"
        if best.measured is not None and best.dense_ms is not None:
            times = (f"{best.dense_ms:.3g} ms", f"{best.measured * best.dense_ms:.3g} ms")
            table.add_row(name, *times, f"{best.measured:.1%}")
        else:
            table.add_row(name, "", "", f"{best.predicted:.1%}, predicted")
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


def show_verification(verification: Verification, console: Console) -> None:
    """Print every check, the comparison with torch, and accuracy where it was counted."""
    for check in verification.checks:
        console.print(
            f"{'ok' if check.ok else 'FAILED'}  {check.name}: {with_flags(check.detail)}", markup=False, soft_wrap=True
        )
    table = new_table("parity", "inputs", ">batch", ">max error", ">relative", ">same top-1", "ok")
    for entry in verification.parity:
        table.add_row(
            f"{entry.network} {entry.precision}",
            entry.inputs if entry.size is None else f"{entry.inputs} {entry.size[0]}x{entry.size[1]}",
            str(entry.batch),
            *("-" if error is None else f"{error:.1e}" for error in (entry.max_abs_error, entry.max_rel_error)),
            "" if entry.top1_agreement is None else f"{entry.top1_agreement:.1%}",
            "yes" if entry.ok else "NO",
        )
    console.print(table)
    for entry in verification.parity:
        if entry.detections is not None:
            console.print(f"{entry.network}, batch {entry.batch}: {matched(asdict(entry.detections))}", markup=False)
    tolerances = {(_in_precision(entry), entry.atol, entry.rtol): None for entry in verification.parity}
    for said, atol, rtol in tolerances:
        console.print(f"Tolerance for {said}: {atol:g} + {rtol:.3g} x the largest output", markup=False)
    if verification.accuracy is not None:
        accuracy = verification.accuracy
        table = new_table(f"top-1 on {accuracy.images} images of {accuracy.folder}", ">top-1", ">95 % interval")
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


def _in_precision(entry: Parity) -> str:
    """Of which files a tolerance is: of all in fp32, and in fp16 of each network's own."""
    return entry.precision if entry.precision == "fp32" else f"{entry.network} {entry.precision}"


def show_precisions(verified: Json | None, timed: Json | None, console: Console, *, trained: bool = True) -> None:
    """Print the table of precisions, where there are others than fp32."""
    rows = precision_rows(verified, timed, trained=trained)
    if not rows:
        return
    table = new_table("precisions", *(f">{column}" for column in precision_columns(verified, timed)))
    for row in rows:
        table.add_row(row.label, *row.cells)
    console.print(table)
    for note in precision_notes(verified, timed):
        console.print(note, markup=False, soft_wrap=True)


def _top1(share: float, images: int) -> tuple[str, str]:
    low, high = share_interval(share * images, images)
    return f"{share:.2%}", f"{low:.1%} to {high:.1%}"


def show_bench(bench: Measured, console: Console) -> None:
    """Print latencies and speed-up at each batch size."""
    table = new_table(f"{bench.provider}, ms", ">dense p50", ">pruned p50", ">p90", ">p99", ">images/s", ">speed-up")
    for entry in bench.batches:
        dense, pruned, speedup = entry.dense, entry.pruned, entry.speedup
        table.add_row(
            f"batch {entry.batch}",
            *(f"{value:.3g}" for value in (dense.p50_ms, pruned.p50_ms, pruned.p90_ms, pruned.p99_ms)),
            f"{pruned.images_per_s:.3g}",
            f"{speedup.ratio:.2f}x ({speedup.low:.2f}-{speedup.high:.2f})",
        )
    console.print(table)


def warn(warnings: Iterable[str], console: Console) -> None:
    """Print warnings."""
    for warning in warnings:
        console.print(Text.assemble(("Warning: ", "bold yellow"), with_flags(warning)), soft_wrap=True)


def new_table(*columns: str, one_line: bool = False) -> Table:
    """A table; the columns whose titles start with > stand to the right."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        right = column.startswith(">")
        overflow: Literal["ellipsis", "fold"] = "ellipsis" if one_line else "fold"
        name, justify = column.lstrip(">"), "right" if right else "left"
        table.add_column(name, justify=justify, overflow=overflow, no_wrap=one_line)  # type: ignore[arg-type]
    return table


def add_fitting(table: Table, rows: Sequence[tuple[str, ...]], width: int) -> None:
    """Add rows, their first cells cut in the middle to what the console leaves beside the others, which are whole."""
    titles = [str(column.header) for column in table.columns]
    others = [max(len(row[place]) for row in (titles, *rows)) for place in range(1, len(titles))]
    room = width - sum(others) - 2 * len(others)
    for column, needed in zip(table.columns[1:], others, strict=True):
        column.min_width = needed
    for name, *cells in rows:
        table.add_row(Text(shorten(name, max(_LEAST_NAME, room))), *cells)


def count(number: int) -> str:
    """A number of operations or parameters, in three digits."""
    return scaled(number, digits=".3g")


def shown_width(group: Group | GroupPlan, width: int) -> str:
    """A width in channels, or in attention heads where these go whole."""
    return f"{width} attention heads" if group.whole_attention_heads else str(width)


def _inputs(plan: Plan) -> str:
    synthetic = plan.calibration is not None and plan.calibration.inputs == "synthetic"
    return "synthetic inputs" if synthetic else "images"
