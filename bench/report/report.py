"""The HTML report: one page that needs nothing but itself, for whoever gets the bundle from a colleague."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib.resources import files

import jinja2
from markupsafe import Markup, escape

from pruneport.bench.report.graph import graph_svg
from pruneport.bench.report.graph_content import content_of_plan
from pruneport.bench.report.plots import groups_plot, latency_plot
from pruneport.bench.report.precision_plot import precision_marks, precision_plot
from pruneport.bench.report.svg import for_screens
from pruneport.documents import Json
from pruneport.export.card.precisions import precision_columns, precision_notes, precision_rows
from pruneport.export.card.provenance import fine_tuned, provenance
from pruneport.export.card.summary import (
    comparisons,
    device_name,
    embedding_note,
    headline,
    onnx_example,
    own_code,
)
from pruneport.export.card.verdict import verdict, warnings_for
from pruneport.export.card.words import clean, matched, milliseconds, percent
from pruneport.export.onnx.form import ANY_BATCH, InputSizes
from pruneport.text import OPTION

__all__ = ["environment", "render_report"]


_TEMPLATE = "report.html.jinja"


def render_report(plan: Json, verify: Json | None, bench: Json | None, sizes: InputSizes = ANY_BATCH) -> str:
    """Return the report as one HTML page with its style and plots inside: no script, nothing fetched.

    The three mappings may come from a stranger's bundle: every text in them is escaped.

    Args:
        plan: What ``plan.json`` holds.
        verify: What the verification found, or None where it was not run.
        bench: What ``bench.json`` holds, or None where latency was not measured.
        sizes: Which inputs the ONNX files take.

    Returns:
        An HTML document that is well-formed XML too.
    """
    return (
        environment()
        .get_template(_TEMPLATE)
        .render(
            plan=plan,
            verify=verify,
            bench=bench,
            agreement=(verify or {}).get("agreement"),
            training=fine_tuned(plan),
            verdict=_unbroken(verdict(plan, verify, bench)),
            headline=_unbroken(headline(plan, verify, bench)),
            warnings=[_coded(_unbroken(sentence)) for sentence in warnings_for(plan, verify, bench)],
            comparisons=comparisons(plan, verify, bench),
            precisions=precision_columns(verify, bench),
            precision_rows=precision_rows(verify, bench, trained=plan["source"]["trained"]),
            precision_notes=precision_notes(verify, bench),
            precision_plot=Markup(_precision_plot(plan, verify, bench)),
            provenance=provenance(plan),
            groups=[_group_cells(group) for group in plan["groups"]],
            graph=Markup(graph_svg(content_of_plan(plan))),
            groups_plot=Markup(for_screens(lambda narrow: groups_plot(plan, narrow=narrow))),
            latency_plot=Markup(for_screens(lambda narrow: latency_plot(bench, narrow=narrow))) if bench else "",
            device=device_name(bench) if bench else "",
            circumstances=_circumstances(bench) if bench else [],
            onnx_example=Markup(escape(onnx_example(plan, sizes, verify))),
            embedding_note=embedding_note(sizes.embedded),
            sizes=sizes,
            own_code=own_code(plan),
        )
    )


def _precision_plot(plan: Json, verify: Json | None, bench: Json | None) -> str:
    """Accuracy against latency, where both are known; else nothing."""
    marks = precision_marks(verify, bench, trained=plan["source"]["trained"])
    return for_screens(lambda narrow: precision_plot(marks, narrow=narrow)) if marks else ""


def environment() -> jinja2.Environment:
    """Our templates, with what they all use; every text in them is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: files(__package__).joinpath(name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["percent"] = percent
    environment.filters["ms"] = milliseconds
    environment.filters["matched"] = matched
    environment.filters["small"] = _small
    environment.filters["coded"] = _coded
    environment.filters["unbroken"] = _unbroken
    environment.filters["count"] = lambda value: f"{value:,}"
    return environment


def _small(value: float | None) -> str:
    """Return an error or a tolerance with two digits, ``1.2e-5``."""
    return "–" if value is None else f"{value:.1e}".replace("e-0", "e-")


def _unbroken(text: str) -> Markup:
    """Escape a sentence; keep its figures in one line with what they count."""
    joined = re.sub(r"(?<=\d) (?=%|points|times|images)", "\xa0", text)
    return escape(joined.replace("batch ", "batch\xa0"))


def _coded(text: str) -> Markup:
    """Escape a sentence; set the options that it names as code."""
    escaped = escape(_finalize(text))
    return Markup(OPTION.sub(lambda found: f"<code>{found[0].strip('`')}</code>", str(escaped)))


def _finalize(value: object) -> object:
    """Keep control and direction characters out of the page; our own markup passes."""
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _group_cells(group: Json) -> dict[str, str]:
    """Return one group's row of the table as text."""
    width, dense = group["width"], group["kept"] is None
    kept = width if dense else len(group["kept"])
    return {
        "name": group["name"],
        "width": f"{width}",
        "asked": "" if group["asked"] is None else f"{group['asked']:.1f}",
        "kept": f"{kept}",
        "removed": "" if dense else percent(1 - kept / width),
        "reason": ": ".join(filter(None, ("Left dense" if dense else "", group["reason"]))),
    }


def _circumstances(bench: Json) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return what the timing ran on and how, as titled lists of name and text."""
    sections = [
        ("Device", {"provider": bench["provider"], **bench["device"]}),
        ("Settings", bench["settings"]),
        ("Versions", bench["versions"]),
    ]
    return [(title, list(_flatten(mapping))) for title, mapping in sections]


def _flatten(mapping: Json, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield name and text of every leaf of a free-form mapping, nested names joined by a comma."""
    for key, value in mapping.items():
        name = f"{prefix}{str(key).replace('_', ' ')}"
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{name}, ")
        elif isinstance(value, (list, tuple)):
            yield name, ", ".join(str(item) for item in value)
        elif isinstance(value, bool) or value is None:
            yield name, {True: "yes", False: "no", None: "–"}[value]
        else:
            yield name, str(value)
