"""A sweep, for a person at a terminal."""

from __future__ import annotations

from rich.console import Console

from pruneport.bench.sweep.picks import quality_of
from pruneport.bench.sweep.records import Figures, Point, Sweep
from pruneport.bench.sweep.words import sweep_caveats, sweep_verdict
from pruneport.commands.study_results import SweepResult
from pruneport.commands.terminal.parts import add_fitting, new_table, warn
from pruneport.units import scaled

__all__ = ["show_sweep"]


def show_sweep(result: SweepResult, console: Console) -> None:
    """Print every point's figures, the picks, and what to beware of."""
    sweep = result.sweep
    measured = [(point, point.figures) for point in sweep.points if point.figures is not None]
    first = measured[0][1]
    quality = "top-1" if first.accuracy else "choices kept" if first.agreement else "MACs kept"
    table = new_table(
        "network", ">MACs kept", ">ONNX", f">p50, batch {first.latencies[0].batch}", ">speed-up", f">{quality}"
    )
    rows = [_dense_row(first), *(_row(sweep, point, figures) for point, figures in measured)]
    add_fitting(table, rows, console.width)
    console.print(table)
    console.print("* on the front: no other network beats it in both accuracy and latency", markup=False)
    for sentence in [pick.said for pick in sweep.picks] or [f"{sweep_verdict(sweep)}."]:
        console.print(sentence, markup=False, soft_wrap=True)
    warn(sweep_caveats(sweep), console)
    report = result.report.resolve()
    console.print(f"Report: {report}", markup=False, soft_wrap=True)
    console.print(f"Open it with: python -m webbrowser {report.as_uri()}", markup=False, soft_wrap=True)


def _dense_row(figures: Figures) -> tuple[str, ...]:
    top1 = None if figures.accuracy is None else figures.accuracy.dense_torch
    latency = f"{figures.latencies[0].dense_ms:.3g} ms"
    return ("dense", "100 %", scaled(figures.dense.bytes, "B"), latency, "", "" if top1 is None else f"{top1:.2%}")


def _row(sweep: Sweep, point: Point, figures: Figures) -> tuple[str, ...]:
    first = figures.latencies[0]
    speedup = first.speedup
    return (
        f"{point.name}{' *' if point.name in sweep.front else ''}",
        f"{figures.pruned.macs / figures.dense.macs:.1%}",
        scaled(figures.pruned.bytes, "B"),
        f"{first.pruned_ms:.3g} ms",
        f"{speedup.ratio:.2f}x ({speedup.low:.2f}-{speedup.high:.2f})",
        f"{quality_of(figures):.2%}",
    )
