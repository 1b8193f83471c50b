"""Accuracy against latency: a mark for each network in each precision that is known in both."""

from __future__ import annotations

import copy
import itertools
from typing import Any
from xml.etree import ElementTree

import pytest

from pruneport.bench.report.precision_plot import Mark, precision_marks, precision_plot
from pruneport.bench.report.report import render_report


@pytest.fixture
def found(verify: Any, bench: Any) -> tuple[Any, Any]:
    verify["precisions"] = [
        {
            "network": network,
            "precision": precision,
            "provider": None,
            "inputs": "images",
            "count": 100,
            "agreement": 0.95,
            "output_error": 0.01,
            "top1": 0.8 if network == "dense" else 0.75,
            "fault": "",
        }
        for network in ("dense", "pruned")
        for precision in ("fp32", "int8", "fp16")
    ]
    for entry in bench["batches"]:
        times = {name: copy.deepcopy(entry[name]) for name in ("dense", "pruned")}
        speedup = entry["speedup"]
        entry["precisions"] = [{"precision": "int8", **times, "dense_speedup": speedup, "pruned_speedup": speedup}]
    return verify, bench


def test_there_is_a_mark_where_both_are_known(found: tuple[Any, Any]) -> None:
    verify, bench = found
    marks = precision_marks(verify, bench)
    assert [(mark.network, mark.precision) for mark in marks] == [
        *(("dense", "fp32"), ("dense", "int8"), ("pruned", "fp32"), ("pruned", "int8")),
    ]
    smallest = min(bench["batches"], key=lambda entry: entry["batch"])
    assert marks[0].latency_ms == smallest["dense"]["p50_ms"]
    assert {mark.measure for mark in marks} == {"top-1 accuracy"}
    assert {mark.measure for mark in precision_marks(verify, bench, trained=False)} == {"same first choice as fp32"}
    for record in verify["precisions"]:
        record["inputs"] = "seeded"
    assert precision_marks(verify, bench) == precision_marks(None, bench) == precision_marks(verify, None) == []


@pytest.mark.parametrize("narrow", [False, True])
def test_the_plot_names_every_mark(found: tuple[Any, Any], narrow: bool) -> None:
    root = ElementTree.fromstring(precision_plot(precision_marks(*found), narrow=narrow))
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert (texts.count("fp32"), texts.count("int8")) == (2, 2)
    assert "dense int8" in root.attrib["aria-label"]


def test_the_report_has_table_and_plot(plan: Any, found: tuple[Any, Any]) -> None:
    page = render_report(plan, *found)
    ElementTree.fromstring(page.partition("<!DOCTYPE html>\n")[2])
    assert "<h2>Precisions</h2>" in page
    assert 'aria-label="top-1 accuracy against latency' in page
    assert "Agreement with fp32, pruned" in page


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("apart", [0.0, 0.002, 0.02])
def test_names_hide_neither_each_other_nor_marks(narrow: bool, apart: float) -> None:
    marks = [
        Mark(network, precision, 1 + apart * place, 0.9 + apart * place / 10, "top-1 accuracy", 1)
        for place, (network, precision) in enumerate(itertools.product(("dense", "pruned"), ("fp32", "fp16", "int8")))
    ]
    root = ElementTree.fromstring(precision_plot(marks, narrow=narrow))
    texts = [element for element in root.iter("{http://www.w3.org/2000/svg}text") if element.text in "fp32 fp16 int8"]
    names = [(float(element.attrib["x"]), float(element.attrib["y"]) - 3) for element in texts]
    drawn = [element.attrib for element in root.iter("{http://www.w3.org/2000/svg}use") if "line2d" not in element.tag]
    places = [(float(one["x"]), float(one["y"])) for one in drawn if "fill" in one["style"]]
    assert len(names) == 6
    for one, other in itertools.combinations(names, 2):
        assert abs(one[0] - other[0]) > 14 or abs(one[1] - other[1]) > 6.5, (one, other)
    for (x, y), (at, up) in itertools.product(names, [place for place in places if place[1] > 30]):
        assert abs(x - at) > 9 or abs(y - up) > 5, "a name on a mark"
