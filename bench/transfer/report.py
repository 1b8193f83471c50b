"""The study's report: one HTML page with its plots inside."""

from __future__ import annotations

from markupsafe import Markup

from pruneport.bench.report.report import environment
from pruneport.bench.report.svg import for_screens
from pruneport.bench.transfer.analysis.records import LowBudget, NetworkSummary, Summary
from pruneport.bench.transfer.plots import frontier_plot, stream_plot, tasks_plot

__all__ = ["claim", "render_transfer"]


def render_transfer(summary: Summary, title: str) -> str:
    """Return the report as one HTML page: no script, nothing fetched; it is well-formed XML, too.

    Args:
        summary: From ``summarise``.
        title: Names the study.
    """
    plots = [_plots(network) for network in summary.networks]
    return (
        environment()
        .get_template("transfer.html.jinja")
        .render(summary=summary, title=title, networks=list(zip(summary.networks, plots, strict=True)), claim=claim)
    )


def _plots(network: NetworkSummary) -> dict[str, Markup]:
    """The plots of one network, for wide and narrow screens."""
    return {
        "stream": Markup(for_screens(lambda narrow: stream_plot(network, narrow=narrow))),
        "tasks": Markup(for_screens(lambda narrow: tasks_plot(network, narrow=narrow))),
        "frontier": Markup(for_screens(lambda narrow: frontier_plot(network, narrow=narrow))),
    }


def claim(network: NetworkSummary) -> str:
    """Say in one sentence whether the paper's claim holds for a network, as measured."""
    rows = network.low_budgets
    if not rows:
        return "Not enough trials to compare dense and pruned at low budgets: add 1 to `kept`, or let the study run on."
    held = [row for row in rows if row.claimed]
    gains = ", ".join(map(_gain, rows))
    verdict = "holds" if len(held) == len(rows) else "holds in part" if held else "does not hold"
    if any(row.beyond_spread is None for row in held):
        verdict += " with one seed, whose spread is not known"
    elif held and not all(row.beyond_spread for row in held):
        verdict += " on the mean, but not beyond the spread over seeds"
    return f"More than 20 % better at low budgets: {verdict}. Accuracy over the tasks: {gains}."


def _gain(row: LowBudget) -> str:
    """How much better the best pruned network is at one budget, in words."""
    gain = "from nothing" if row.gain is None else f"{row.gain:+.0%}"
    spread = "one seed" if row.deviation is None else f"± {row.deviation:.1%}"
    return (
        f"{gain} at {row.budget:.2g} FLOPs ({row.accuracy:.1%} with {row.kept:.0%} of the MACs against "
        f"{row.dense_accuracy:.1%} dense, {spread})"
    )
