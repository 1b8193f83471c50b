"""The sweep's report: one HTML page with its plot inside."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pruneport.bench.report.report import environment
from pruneport.bench.report.svg import for_screens
from pruneport.bench.sweep.plots import tradeoff_plot
from pruneport.bench.sweep.records import Figures, Point, Sweep
from pruneport.bench.sweep.words import sweep_caveats, sweep_verdict
from pruneport.export.card.intervals import Interval, change_interval, change_p_value, share_interval
from pruneport.export.card.words import milliseconds, p_value, percent
from pruneport.units import scaled

__all__ = ["render_sweep"]


_FOLDERS = ("calibration", "images")  # of which a page that is sent on says no more than the name


def render_sweep(sweep: Sweep) -> str:
    """Return the report as one HTML page: no script, nothing fetched; it is well-formed XML, too.

    Args:
        sweep: With at least one point that was measured.
    """
    first = next(point.figures for point in sweep.points if point.figures is not None)
    return (
        environment()
        .get_template("sweep.html.jinja")
        .render(
            sweep=sweep,
            verdict=sweep_verdict(sweep),
            caveats=sweep_caveats(sweep),
            plot=Markup(for_screens(lambda narrow: tradeoff_plot(sweep, narrow=narrow))),
            rows=[
                _dense_cells(first),
                *(_cells(sweep, point) for point in sweep.points if point.figures is not None),
            ],
            failed=[point for point in sweep.points if point.fault],
            others=[pick for pick in sweep.picks if pick is not sweep.picks[0] or pick.point is None],
            accuracy=first.accuracy,
            columns=_columns(first),
            latencies=[_latency_cells(point) for point in sweep.points if point.figures is not None],
            options=_options(sweep),
        )
    )


def _columns(first: Figures) -> list[tuple[str, str]]:
    """Title and key of each column."""
    return [
        ("MACs", "macs"),
        ("Parameters", "params"),
        ("ONNX file", "bytes"),
        (f"p50, batch {first.latencies[0].batch}", "latency"),
        ("Speed-up", "speedup"),
        ("Top-1" if first.accuracy else "First choices kept", "quality"),
        ("Change", "change"),
    ]


def _cells(sweep: Sweep, point: Point) -> dict[str, Any]:
    """A point's row of the table as text."""
    figures = point.figures
    assert figures is not None
    pruned, dense, speedup = figures.pruned, figures.dense, figures.latencies[0].speedup
    marks = [
        *(f"picked by `{pick.limit.rule}`" for pick in sweep.picks if pick.point == point.name),
        *(["on the front"] if point.name in sweep.front else []),
        *(["found by the search"] if point.searched else []),
    ]
    return {
        "name": point.name,
        "picked": any(pick.point == point.name for pick in sweep.picks),
        "macs": (scaled(pruned.macs), percent(pruned.macs / dense.macs)),
        "params": (scaled(pruned.params), percent(pruned.params / dense.params)),
        "bytes": (scaled(pruned.bytes, "B"), percent(pruned.bytes / dense.bytes)),
        "latency": (f"{milliseconds(figures.latencies[0].pruned_ms)} ms", "busy machine" if figures.busy else ""),
        "speedup": (f"{speedup.ratio:.2f}×", f"{speedup.low:.2f} to {speedup.high:.2f}"),
        "quality": _quality(figures),
        "change": _change(figures),
        "marks": ", ".join(marks),
    }


def _dense_cells(figures: Figures) -> dict[str, Any]:
    """The dense network's row."""
    accuracy = figures.accuracy
    top1 = None if accuracy is None else accuracy.dense_torch
    return {
        "name": "dense",
        "picked": False,
        "macs": (scaled(figures.dense.macs), ""),
        "params": (scaled(figures.dense.params), ""),
        "bytes": (scaled(figures.dense.bytes, "B"), ""),
        "latency": (f"{milliseconds(figures.latencies[0].dense_ms)} ms", ""),
        "speedup": ("–", ""),
        "quality": ("–", "") if top1 is None or accuracy is None else _with_interval(top1, accuracy.images),
        "change": ("–", "", ""),
        "marks": "",
    }


def _quality(figures: Figures) -> tuple[str, str]:
    if figures.accuracy is not None:
        return _with_interval(figures.accuracy.pruned_onnx, figures.accuracy.images)
    if figures.agreement is not None:
        return _with_interval(figures.agreement.top1, figures.agreement.images)
    return "–", ""


def _with_interval(share: float, images: int) -> tuple[str, str]:
    return percent(share), _ends(share_interval(round(share * images), images))


def _change(figures: Figures) -> tuple[str, ...]:
    """The change from dense, with its interval and how likely it is by chance."""
    if figures.accuracy is None or figures.accuracy.drop is None:
        return "–", ""
    accuracy = asdict(figures.accuracy)
    interval, chance = change_interval(accuracy), change_p_value(accuracy)
    said = f"{-figures.accuracy.drop:+.1f} points".replace("-", "−").replace("−0.0", "0.0").replace("+0.0", "0.0")
    return (said, "") if interval is None or chance is None else (said, _ends(interval), p_value(chance))


def _ends(interval: Interval) -> str:
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f}".replace("-", "−")


def _latency_cells(point: Point) -> tuple[str, list[dict[str, str]]]:
    """Name of a point, and a row for each batch size."""
    assert point.figures is not None
    return point.name, [
        {
            "batch": str(entry.batch),
            "dense": milliseconds(entry.dense_ms),
            "pruned": milliseconds(entry.pruned_ms),
            "speedup": f"{entry.speedup.ratio:.2f}× ({entry.speedup.low:.2f} to {entry.speedup.high:.2f})",
        }
        for entry in point.figures.latencies
    ]


def _options(sweep: Sweep) -> list[tuple[str, str]]:
    """What the sweep was made with, name and text."""
    found = []
    for name, value in sweep.identity.items():
        if isinstance(value, dict):
            found += [(f"{name}, {key}", str(entry)) for key, entry in value.items() if entry not in (None, [], {})]
        elif value not in (None, [], False):
            found.append((name, Path(value).name if name in _FOLDERS else str(value)))
    return [(name.replace("_", " "), text) for name, text in found]
