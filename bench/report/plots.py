"""Plots as inline SVG: what was removed from every group, and how long dense and pruned take."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter

from pruneport.bench.report.svg import DENSE, INK, KEPT, MUTED, REMOVED, inline_svg, quiet, styled, width_inches, write
from pruneport.documents import Json
from pruneport.export.card.words import milliseconds, shorten

__all__ = ["groups_plot", "latency_plot", "sensitivity_plot"]


_ROW_INCHES = 0.165
_NAME_CHARS, _NARROW_NAME_CHARS = 46, 24
_STRIP_SAMPLES = 150
_NAMED_CURVES = 6
_LEAST_ERROR = 1e-9
_BEYOND = 3.0  # multiples of the slower median at which the time axis ends: one hiccup must not squash the rest


def groups_plot(plan: Json, *, narrow: bool = False) -> str:
    """Draw one bar per group in network order: the share that was kept, and that was removed; or left dense.

    Args:
        plan: What ``plan.json`` holds.
        narrow: For a screen of 400 pixels.

    Returns:
        An ``<svg>`` element.
    """
    groups = plan["groups"]
    pruned = sum(group["kept"] is not None for group in groups)
    with styled():
        height = 0.75 + _ROW_INCHES * max(1, len(groups))
        figure = Figure(figsize=(width_inches(narrow), height), layout="constrained")
        axes = figure.add_subplot(facecolor="none")
        _draw_groups(axes, groups, narrow)
        axes.set_xlabel("share of the group's filters; beside it, their number")
        axes.set_ylim(max(1, len(groups)) - 0.4, -0.6)
        chars = _NARROW_NAME_CHARS if narrow else _NAME_CHARS
        axes.set_yticks(range(len(groups)), [shorten(group["name"], chars) for group in groups])
        quiet(axes)
        handles = [
            Patch(color=KEPT, label="kept"),
            Patch(color=REMOVED, label="removed"),
            Patch(facecolor="none", edgecolor=DENSE, label="left dense"),
        ]
        figure.legend(handles=handles, loc="outside upper left", ncols=3)
        label = f"Filters kept and removed: {pruned} of {len(groups)} groups pruned"
        return inline_svg(figure, "groups", label)


def latency_plot(bench: Json, *, narrow: bool = False) -> str:
    """Draw the timed runs of dense and pruned at every batch size, with medians and the measured speed-up.

    Args:
        bench: What ``bench.json`` holds.
        narrow: For a screen of 400 pixels.

    Returns:
        An ``<svg>`` element.
    """
    batches = bench["batches"]
    with styled():
        height = 0.45 + 0.95 * max(1, len(batches))
        figure = Figure(figsize=(width_inches(narrow), height), layout="constrained")
        for index, entry in enumerate(batches):
            axes = figure.add_subplot(len(batches), 1, index + 1, facecolor="none")
            limit = _BEYOND * max(entry["dense"]["p50_ms"], entry["pruned"]["p50_ms"])
            dense_end = _draw_samples(axes, 0, entry["dense"], limit, DENSE)
            pruned_end = _draw_samples(axes, 1, entry["pruned"], limit, KEPT)
            axes.set_xlim(0, 1.04 * max(dense_end, pruned_end))
            axes.set_ylim(1.5, -0.5)
            axes.set_yticks([0, 1], [_row_label(name, entry[name], limit) for name in ("dense", "pruned")])
            axes.set_title(f"batch {entry['batch']}", loc="left", fontsize=8.5, fontweight="bold")
            axes.set_title(_interval(entry["speedup"]), loc="right", fontsize=7.5)
            quiet(axes)
        if batches:
            figure.axes[-1].set_xlabel("milliseconds per batch")
        handles = [
            Line2D([], [], color=MUTED, linewidth=0, marker="o", markersize=2.5, label="one run"),
            Line2D([], [], color=MUTED, linewidth=0, marker="|", mew=2, markersize=9, label="median (p50)"),
            Line2D([], [], color=MUTED, linewidth=1.6, label="p50 to p90"),
        ]
        figure.legend(handles=handles, loc="outside upper left", ncols=3)
        label = "Latency of dense and pruned: " + "; ".join(
            f"batch {entry['batch']}, {_interval(entry['speedup'])}" for entry in batches
        )
        return inline_svg(figure, "latency", label)


def sensitivity_plot(groups: Sequence[Json]) -> str:
    """Draw the output error of every measured group against the share of it removed; the worst are named.

    Args:
        groups: As ``InspectResult.to_dict`` gives them where sensitivities were measured.

    Returns:
        An ``<svg>`` element.
    """
    measured = [group for group in groups if group["sensitivity"]]
    ends = sorted(measured, key=lambda group: max(group["sensitivity"]["output_error"]), reverse=True)
    named = [group["name"] for group in ends[:_NAMED_CURVES]]
    with styled():
        figure = Figure(figsize=(width_inches(False), 4.2), layout="constrained")
        axes = figure.add_subplot(facecolor="none")
        for group in reversed(ends):
            curve = group["sensitivity"]
            removed = [1 - width / group["width"] for width in curve["widths"]]
            errors = [max(_LEAST_ERROR, error) for error in curve["output_error"]]
            stands_out = group["name"] in named
            colour = KEPT if stands_out else DENSE
            axes.plot(removed[1:], errors[1:], color=colour, linewidth=1.4 if stands_out else 0.7, marker="o", ms=2)
            if stands_out:
                write(axes, shorten(group["name"], _NAME_CHARS), removed[-1], errors[-1], color=INK, size=6.5)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlim(0, 1.25)
        axes.xaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
        axes.set_xlabel("filters of the group removed, alone, its consumers solved anew")
        axes.set_ylabel("squared error of the outputs / their variance")
        quiet(axes)
        axes.grid(axis="y")
        label = f"Sensitivity of {len(measured)} groups; the most sensitive: {', '.join(named)}"
        return inline_svg(figure, "sensitivity", label)


def _draw_groups(axes: Axes, groups: Sequence[Json], narrow: bool) -> None:
    """Draw one bar a group."""
    for row, group in enumerate(groups):
        width = max(1, int(group["width"]))
        if group["kept"] is None:
            text = f"{group['width']}"
            axes.barh(row, 1, 0.6, facecolor="none", edgecolor=DENSE, linewidth=0.8)
        else:
            text = f"{len(group['kept'])} of {group['width']}"
            axes.barh(row, 1, 0.72, color=REMOVED)
            axes.barh(row, len(group["kept"]) / width, 0.72, color=KEPT)
        write(axes, text, 1, row, color=MUTED, size=6.5)
    axes.set_xlim(0, 1.3 if narrow else 1.15)  # room for the figures right of the bars
    axes.xaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))


def _draw_samples(axes: Axes, row: int, timing: Json, limit: float, colour: str) -> float:
    """Draw one network's strip, median and p50..p90 line; return the largest time drawn in ms."""
    shown = [sample for sample in _thin(sorted(timing["samples_ms"])) if sample <= limit]
    # Multiples of the golden ratio fill [0, 1) evenly and need no seed.
    spread = [row - 0.3 + 0.6 * (index * 0.618034 % 1) for index in range(len(shown))]
    p50, p90 = float(timing["p50_ms"]), min(limit, float(timing["p90_ms"]))
    axes.barh(row, p50, 0.72, color=colour, alpha=0.2)
    axes.scatter(shown, spread, s=5, color=colour, alpha=0.6, linewidths=0, clip_on=False)
    axes.plot([p50, p90], [row, row], color=colour, linewidth=1.6, solid_capstyle="butt")
    axes.plot([p50, p50], [row - 0.36, row + 0.36], color=colour, linewidth=2, solid_capstyle="butt")
    write(axes, f"{milliseconds(p50)} ms", 0, row, color=INK)
    return max([p50, p90, *shown])


def _row_label(name: str, timing: Json, limit: float) -> str:
    beyond = sum(sample > limit for sample in timing["samples_ms"])
    return f"{name}\n{beyond} beyond {milliseconds(limit)} ms" if beyond else name


def _thin(samples: Sequence[float]) -> list[float]:
    """Return at most ``_STRIP_SAMPLES`` of the sorted samples, evenly, with both ends."""
    if len(samples) <= _STRIP_SAMPLES:
        return list(samples)
    step = (len(samples) - 1) / (_STRIP_SAMPLES - 1)
    return [samples[round(index * step)] for index in range(_STRIP_SAMPLES)]


def _interval(speedup: Json) -> str:
    level = f"{100 * speedup['confidence']:g} % interval"
    return f"{speedup['ratio']:.2f}× as fast ({level} {speedup['low']:.2f} to {speedup['high']:.2f})"
