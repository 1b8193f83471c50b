from __future__ import annotations

import copy
import re
from typing import Any
from xml.etree import ElementTree

import matplotlib
import pytest

from pruneport.bench.report.plots import groups_plot, latency_plot, sensitivity_plot
from pruneport.bench.transfer.analysis.records import FrontierPoint, NetworkSummary
from pruneport.bench.transfer.plots import frontier_plot

_SVG = "{http://www.w3.org/2000/svg}"


def _texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{_SVG}text")]


def _height(svg: str) -> float:
    return float(ElementTree.fromstring(svg).attrib["viewBox"].split()[3])


def test_groups_are_named_in_network_order_with_their_widths(plan: dict[str, Any]) -> None:
    texts = _texts(groups_plot(plan))
    names = [group["name"] for group in plan["groups"]]
    assert [text for text in texts if text in names] == names
    for group in plan["groups"]:
        width = group["width"]
        expected = f"{width}" if group["kept"] is None else f"{len(group['kept'])} of {width}"
        assert expected in texts


def test_groups_left_dense_are_hollow(plan: dict[str, Any]) -> None:
    plan["groups"] = plan["groups"][:1]
    assert "--plot-removed" in groups_plot(plan)  # the legend's own patch
    only_dense = groups_plot(plan).count("--plot-kept")
    plan["groups"][0]["kept"] = list(range(32))
    assert groups_plot(plan).count("--plot-kept") == only_dense + 1


@pytest.mark.parametrize("count", [0, 1, 5, 120])
def test_every_number_of_groups_keeps_the_same_row_height(plan: dict[str, Any], count: int) -> None:
    plan["groups"] = [copy.deepcopy(plan["groups"][index % 38]) for index in range(count)]
    for index, group in enumerate(plan["groups"]):
        group["name"] = f"block{index}"
    svg = groups_plot(plan)
    assert [text for text in _texts(svg) if text.startswith("block")] == [f"block{i}" for i in range(count)]
    assert _height(svg) == pytest.approx(54 + 11.88 * max(1, count))


def test_long_and_strange_names_are_drawn_as_text(plan: dict[str, Any]) -> None:
    plan["groups"][0]["name"] = "features." * 12 + "conv1"
    plan["groups"][1]["name"] = "$\\frac{1}{2}$ <script>alert(1)</script>"
    plan["groups"][2]["name"] = "卷积\x00\n‮層"
    svg = groups_plot(plan)
    texts = _texts(svg)
    assert any(text.startswith("features.") and "…" in text and text.endswith("conv1") for text in texts)
    assert plan["groups"][1]["name"] in texts
    assert "卷积\ufffd \ufffd層" in texts
    assert "<script" not in svg


def test_a_group_kept_almost_whole_or_almost_gone(plan: dict[str, Any]) -> None:
    plan["groups"] = plan["groups"][1:3]
    plan["groups"][0]["kept"] = [5]
    plan["groups"][1]["kept"] = list(range(64))
    texts = _texts(groups_plot(plan))
    assert "1 of 64" in texts
    assert "64 of 64" in texts


def test_latency_shows_medians_and_speedup_with_interval(bench: dict[str, Any]) -> None:
    svg = latency_plot(bench)
    texts = _texts(svg)
    for entry in bench["batches"]:
        speedup = entry["speedup"]
        interval = f"95 % interval {speedup['low']:.2f} to {speedup['high']:.2f}"
        assert f"{speedup['ratio']:.2f}× as fast ({interval})" in texts
        assert f"batch {entry['batch']}" in texts
        assert f"{entry['pruned']['p50_ms']:.2f} ms" in texts
    assert svg.count("<use") >= sum(len(entry["dense"]["samples_ms"]) for entry in bench["batches"])


def test_latency_does_not_let_one_hiccup_squash_the_rest(bench: dict[str, Any]) -> None:
    bench["batches"] = bench["batches"][:1]
    bench["batches"][0]["pruned"]["samples_ms"][3] = 5000.0
    assert any("1 beyond" in text for text in _texts(latency_plot(bench)))


def test_latency_stays_small_with_many_samples(bench: dict[str, Any]) -> None:
    for entry in bench["batches"]:
        entry["dense"]["samples_ms"] = [entry["dense"]["p50_ms"] + 0.001 * index for index in range(5000)]
    assert len(latency_plot(bench)) < 200_000


def test_latency_of_less_than_a_millisecond_keeps_three_decimals(bench: dict[str, Any]) -> None:
    timing = bench["batches"][0]["pruned"]
    timing |= {"p50_ms": 0.4217, "p90_ms": 0.43, "samples_ms": [0.42, 0.4217, 0.43]}
    assert "0.422 ms" in _texts(latency_plot(bench))


@pytest.mark.slow
def test_plots_are_deterministic_and_carry_no_date(plan: dict[str, Any], bench: dict[str, Any]) -> None:
    assert groups_plot(plan) == groups_plot(plan)
    assert latency_plot(bench) == latency_plot(bench)
    assert "metadata" not in groups_plot(plan)


def test_ids_of_different_plots_do_not_clash(plan: dict[str, Any], bench: dict[str, Any]) -> None:
    other = copy.deepcopy(plan)
    other["groups"].pop()
    pages = [groups_plot(plan), groups_plot(other), latency_plot(bench)]
    found = [re.findall(r' id="([^"]+)"', page) for page in pages]
    everything = [name for names in found for name in names]
    assert len(everything) == len(set(everything))
    for page, names in zip(pages, found, strict=True):
        referred = re.findall(r'(?:url\(#|href="#)([^")]+)', page)
        assert referred
        assert set(referred) <= set(names)


def test_plots_fetch_nothing_and_style_nothing_else(plan: dict[str, Any], bench: dict[str, Any]) -> None:
    for svg in (groups_plot(plan), latency_plot(bench)):
        root = ElementTree.fromstring(svg)
        assert root.attrib["role"] == "img"
        assert root.attrib["aria-label"]
        assert not list(root.iter(f"{_SVG}style"))
        assert svg.count("http") == 1  # the namespace


def test_colours_are_variables(plan: dict[str, Any], bench: dict[str, Any]) -> None:
    for svg in (groups_plot(plan), latency_plot(bench)):
        bare = re.findall(r"(?<!, )#[0-9a-f]{6}", svg)
        assert bare == []


def test_global_settings_of_matplotlib_stay_as_they_were(plan: dict[str, Any]) -> None:
    before = dict(matplotlib.rcParams)
    groups_plot(plan)
    assert dict(matplotlib.rcParams) == before


def test_a_users_own_settings_of_matplotlib_do_not_show(plan: Any) -> None:
    expected = groups_plot(plan)
    with matplotlib.rc_context({"text.usetex": True, "axes.facecolor": "red", "font.family": "monospace"}):
        assert groups_plot(plan) == expected


# Sensitivity


def test_the_sensitivity_plot_names_the_worst_groups_and_every_point_is_there() -> None:
    groups = [
        {
            "name": f"layer{number}",
            "width": 8,
            "sensitivity": {
                "widths": [8.0, 4.0, 2.0],
                "local_error": [0.0, 0.1, 0.2],
                "output_error": [0.0, 10.0**-number, 2 * 10.0**-number],
            },
        }
        for number in range(1, 10)
    ]
    groups.append({"name": "<script>", "width": 4, "sensitivity": None})
    svg = sensitivity_plot(groups)
    root = ElementTree.fromstring(svg)
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert [name for name in (f"layer{number}" for number in range(1, 10)) if name in texts] == [
        f"layer{number}" for number in range(1, 7)
    ]
    assert "Sensitivity of 9 groups" in root.attrib["aria-label"]
    assert "script" not in svg
    assert {"0.01", "0.1"} <= set(texts)  # plain numbers on the axis, no markup
    assert "mathdefault" not in svg


def test_the_frontier_names_the_share_that_a_budget_reaches() -> None:
    reached = ((4.7e11, 0.6, 0.75), (4.9e11, 0.5, 0.35), (1.6e12, 0.4, 0.5))  # the first two are of one budget
    points = tuple(
        FrontierPoint(flops=flops, error=error, scope="filters", recipe="none", kept=kept)
        for flops, error, kept in reached
    )
    network = NetworkSummary(
        name="net",
        tasks=("birds",),
        dense=False,
        curves=(),
        stream=(),
        frontier={"birds": points},
        areas=(),
        low_budgets=(),
        laws=(),
        scopes=(),
    )
    texts = _texts(frontier_plot(network))
    assert {"35%", "50%"} <= set(texts)
    assert "75%" not in texts
    assert {"training FLOPs", "error"} <= set(texts)
