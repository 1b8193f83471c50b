"""The sweep's page: what it says, that it is whole, and that a small screen needs no scrollbar."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from browser import BROWSER, layouts
from sweep_points import make_point, make_sweep

from pruneport.bench.sweep.records import Limit, Point, read_sweep
from pruneport.bench.sweep.report import render_sweep
from pruneport.bench.sweep.words import sweep_caveats, sweep_verdict
from pruneport.export.accuracy import Agreement

DROP, SPEED = Limit(rule="max_drop", value=1.0), Limit(rule="min_speedup", value=1.5)
POINTS = [
    make_point(0.9, 1.1),
    make_point(0.7, 1.45, 8, searched=True),
    make_point(0.5, 2.0, 60, busy=True),
    make_point(0.05, None, error="`flops=0.05` cannot be reached."),
    make_point(0.03, None, error="`flops=0.03` cannot be reached.", searched=True),
]


def _text(page: str) -> str:
    root = ElementTree.fromstring(page.replace("<!DOCTYPE html>\n", "", 1))
    return " ".join(" ".join(root.itertext()).split())


def test_the_page_says_what_it_is_worth() -> None:
    sweep = make_sweep(POINTS, DROP, SPEED)
    page = render_sweep(sweep)
    said = _text(page)
    assert sweep_verdict(sweep) == (
        "flops-0.7: 1.45 times as fast at batch 1, 0.8 points of top-1 lost on 1000 images; "
        "within your limit of 1 point"
    )
    assert f"<h1>{sweep_verdict(sweep)}</h1>" in page.replace("\xa0", " ")
    for words in (
        "The most accurate that is surely 1.5 times as fast as the dense one is flops-0.5: 2.00 times as fast at batch "
        "1 on a busy machine, 6.0 points of top-1 lost",
        "The machine was busy when 1 of 3 networks were timed: flops-0.5.",
        "A pick is the best of several on the same images",
        "flops-0.05. flops=0.05 cannot be reached.",
        "700.00 k 70.0 %",
        "1.45× 1.40 to 1.50",
        "89.2 % 87.1 to 91.0",
        "−0.8 points −1.5 to −0.2 p = 0.008",
        "picked by max_drop , on the front, found by the search",
    ):
        assert words in said, words
    assert "images photos" in said
    assert "secret" not in page
    assert "flops-0.03" not in said  # the search tried it, nobody asked
    assert "<script" not in page
    assert not re.search(r"(?:src|href)=\"https?:", page)


def test_it_reads_back_what_it_wrote() -> None:
    sweep = make_sweep(POINTS, DROP)
    assert read_sweep(json.dumps(sweep.to_dict()).encode(), "x", "y") == sweep


def test_without_limits_it_says_how_far_it_goes() -> None:
    verdict = sweep_verdict(make_sweep(POINTS))
    assert verdict.startswith("From flops-0.9, 1.10 times as fast at batch 1, no top-1 lost on 1000 images")
    assert "; to flops-0.5, 2.00 times as fast" in verdict
    slow = [make_point(0.9, 0.8, 5)]
    assert sweep_verdict(make_sweep(slow)) == "No network is better than the dense one in anything."
    assert "No network is better" in _text(render_sweep(make_sweep(slow)))


def test_a_limit_that_nothing_holds_names_the_nearest() -> None:
    sweep = make_sweep(POINTS[2:], DROP)
    assert sweep_verdict(sweep) == "No network that loses at most 1 point of top-1"
    assert "The nearest is flops-0.5: 2.00 times as fast" in sweep.picks[0].said
    assert sweep.picks[0].said in _text(render_sweep(sweep))


def test_the_smallest_that_holds_a_limit_may_not_be_the_best() -> None:
    caveats = sweep_caveats(make_sweep([make_point(0.9, 1.1), make_point(0.8, 1.2)], DROP))
    assert "flops-0.8 is the smallest that was tried: a smaller one may hold your limit, too." in caveats
    assert any("Architecture only" in said for said in sweep_caveats(make_sweep(POINTS, trained=False)))


def _without_labels(point: Point, agreement: Agreement | None) -> Point:
    assert point.figures is not None
    return replace(point, figures=replace(point.figures, accuracy=None, agreement=agreement))


def test_without_labels_the_agreement_counts_and_without_images_what_was_kept() -> None:
    alike = [
        _without_labels(point, Agreement(images=200, folder="photos", top1=top1))
        for point, top1 in zip(POINTS[:3], (0.99, 0.97, 0.8), strict=True)
    ]
    said = _text(render_sweep(make_sweep(alike, SPEED)))
    assert (
        "flops-0.5: 2.00 times as fast at batch 1 on a busy machine, the dense network's first choice kept on" in said
    )
    assert "First choices kept" in said
    assert "80.0 % 73.9 to 85.0" in said  # Wilson's of 160 of 200
    unseen = [_without_labels(point, None) for point in POINTS[:3]]
    said = _text(render_sweep(make_sweep(unseen, SPEED)))
    assert "accuracy not measured" in said
    assert "MACs kept (accuracy was not measured)" in said
    assert "A pick is the best of several" not in said


@pytest.mark.browser
@pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on PATH")
def test_nothing_scrolls_sideways_on_any_screen(tmp_path: Path) -> None:
    found = layouts(render_sweep(make_sweep(POINTS, DROP, SPEED)), tmp_path)
    assert len(found) == 5
    for measured in found:
        assert max(measured["scroll"], measured["right"]) <= measured["width"], measured
        assert measured["wide"] == []
        assert measured["shown"] == 1  # of the plot's two sizes
