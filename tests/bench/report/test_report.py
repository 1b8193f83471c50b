from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from browser import BROWSER, browse, layouts
from PIL import Image

from pruneport.bench.report.report import render_report

_HOSTILE = "x:</title><script>alert(1)</script><img src=\"http://evil.example/\" onerror='alert(1)'>&amp;{{ 7*7 }}"


@pytest.fixture(scope="module")
def page() -> str:
    """The report of what ``plan``, ``verify`` and ``bench`` say, unchanged: drawing takes a second."""
    data = Path(__file__).parents[2] / "data"
    names = ("sample_plan", "sample_verify", "sample_bench")
    return render_report(*(json.loads((data / f"{name}.json").read_text(encoding="utf-8")) for name in names))


@pytest.fixture
def small_plan(plan: Any) -> Any:
    """With three of its groups, for text above and below them: the others only take time to draw."""
    return plan | {"groups": plan["groups"][:3]}


def _parse(page: str) -> ElementTree.Element:
    doctype = "<!DOCTYPE html>\n"
    assert page.lstrip().startswith(doctype)
    return ElementTree.fromstring(page.replace(doctype, "", 1))


def _text(page: str) -> str:
    return " ".join(" ".join(_parse(page).itertext()).split())


def _rows(page: str, label: str) -> list[list[str]]:
    region = next(element for element in _parse(page).iter("div") if element.get("aria-label") == label)
    return [[" ".join("".join(cell.itertext()).split()) for cell in row] for row in region.iter("tr")]


def test_headline_says_it_all(page: str) -> None:
    header = _parse(page).find("body/header")
    assert header is not None
    title, subtitle = header.find("h1"), header.find("p[@class='subtitle']")
    assert title is not None
    assert subtitle is not None
    assert " ".join((title.text or "").split()) == (
        "1.71 times as fast at batch 1; 34.8 points of top-1 lost on 250 images"
    )
    assert " ".join((subtitle.text or "").split()) == (
        "torchvision:resnet50 at 50 % of its compute: 1.71× faster at batch 1 on AMD EPYC 9654, top-1 92.0 % → 57.2 %"
    )
    (warning,) = header.findall("p[@class='callout']")
    said = " ".join("".join(warning.itertext()).split())
    assert said.startswith("Warning. Accuracy fell by 34.8 points, from 92.0 % to 57.2 % on 250 images.")


def test_a_busy_machine_is_said_on_top(small_plan: Any, verify: Any, bench: Any) -> None:
    bench["device"]["cpu_in_use_by_others"] = 0.87
    header = _parse(render_report(small_plan, verify, bench)).find("body/header")
    assert header is not None
    said = " ".join(" ".join(header.itertext()).split())
    assert "1.71 times as fast at batch 1, on a busy machine; 34.8 points" in said
    assert "The machine was busy before the timed rounds: others used 87 %" in said


def test_what_training_counted_is_the_accuracy_where_nothing_else_is(small_plan: Any, verify: Any, bench: Any) -> None:
    verify["accuracy"] = None
    small_plan["training"] = {
        "task": "birds",
        "classes": ["a", "b"],
        "images": 900,
        "steps": 50,
        "flops": 1e12,
        "top1": 0.346,
        "test_images": 462,
        "resize": 32,
        "mean": [0.5],
        "std": [0.5],
    }
    page = render_report(small_plan, verify, bench)
    rows = {row[0]: row[1:] for row in _rows(page, "Before and after")}
    assert rows["Top-1 accuracy, torch, after fine-tuning"] == ["–", "34.6 % (30.4 to 39.1)", "–"]
    assert "Accuracy was not measured" not in page
    assert "on 462 test images of <code>birds</code>" in page


def test_before_and_after(plan: Any, verify: Any, bench: Any, page: str) -> None:
    rows = {row[0]: row[1:] for row in _rows(page, "Before and after")}
    assert rows["Compute, MACs"] == ["4.11 G", "2.06 G", "−49.9 %"]
    assert rows["Compute, FLOPs (2 × MACs)"] == ["8.22 G", "4.12 G", "−49.9 %"]
    assert rows["Parameters"] == ["25.56 M", "14.02 M", "−45.1 %"]
    assert rows["ONNX file"] == ["102.35 MB", "56.23 MB", "−45.1 %"]
    assert rows["Latency p50, batch 32"][2] == "no clear speed-up"
    accuracies = ["92.0 % (88.0 to 94.8)", "57.2 % (51.0 to 63.2)"]  # Wilson's intervals
    assert rows["Top-1 accuracy, torch"] == [*accuracies, "−34.8 points"]
    in_onnx = "Top-1 accuracy, pruned in ONNX Runtime"
    assert rows[in_onnx] == [*accuracies, "−34.8 points"]  # of an earlier version, without the counts for an interval
    verify["accuracy"] |= {"only_dense": 95, "only_pruned": 8}
    rows = {row[0]: row[1:] for row in _rows(render_report(plan, verify, bench), "Before and after")}
    assert rows[in_onnx] == [
        *accuracies,
        "−34.8 points (−41.4 to −27.9; p < 0.001)",
    ]  # Newcombe's, of the change, McNemar's


def test_group_table_holds_every_group_and_reason(plan: Any, page: str) -> None:
    header, *rows = _rows(page, "Every group")
    assert header == ["Group", "Width", "Asked", "Kept", "Removed", "Reason"]
    assert [row[0] for row in rows] == [group["name"] for group in plan["groups"]]
    assert rows[1] == ["layer1.0.conv1", "64", "42.7", "40", "37.5 %", ""]
    assert rows[-1] == ["fc", "1000", "–", "1000", "–", "Left dense: the outputs of the head"]


def test_latency_table_and_circumstances(small_plan: Any, verify: Any, bench: Any) -> None:
    bench["device"]["at_end"]["power_w"] = None
    bench["settings"]["session_config"] = {"session.intra_op.allow_spinning": "0"}
    page = render_report(small_plan, verify, bench)
    rows = _rows(page, "Latency figures")
    assert len(rows) == 1 + 2 * len(bench["batches"])
    assert re.fullmatch(r"1\.71× \(1\.68 to 1\.74, 95 %\)", rows[2][-1])
    text = _text(page)
    assert "at end, power w –" in text
    assert "session config, session.intra op.allow spinning 0" in text
    assert bench["method"] in text


def test_parity_states_tolerance_and_outcome_in_words(small_plan: Any, verify: Any, bench: Any) -> None:
    verify["ok"] = verify["parity"][4]["ok"] = verify["checks"][1]["ok"] = False
    page = render_report(small_plan, verify, bench)
    rows = _rows(page, "Parity")
    assert {row[-1] for row in rows[1:]} == {"✓ pass", "✗ fail"}
    assert rows[5][-1] == "✗ fail"
    assert rows[1][5] == "1e-4 + 1e-3"
    assert "Verification failed" in _text(page)


def test_untrained_weights_are_called_out_and_no_accuracy_is_shown(small_plan: Any, verify: Any, bench: Any) -> None:
    small_plan["source"] |= {"trained": False, "checkpoint": None, "checkpoint_sha256": None}
    text = _text(render_report(small_plan, verify, bench))
    assert "Architecture only." in text
    assert "No checkpoint and no weights were given: latency is meaningful, accuracy is not" in text
    assert "Accuracy is left out: no checkpoint and no weights were given." in text
    assert "untrained" not in text  # a factory may load weights of its own
    assert "57.2" not in text


def test_options_are_code_and_flags_of_earlier_plans_stay(small_plan: Any, verify: Any, bench: Any) -> None:
    small_plan["note"] = "<b> a smaller `round_to` does"
    small_plan["groups"][0]["reason"] = "a residual stream, outside `scope=filters`"
    small_plan["groups"][1]["reason"] = "kept by --keep layer*"
    page = render_report(small_plan, verify, bench)
    assert "(<code>calibration=FOLDER</code>), a higher <code>flops</code>, or" in page
    assert "&lt;b&gt; a smaller <code>round_to</code> does" in page
    assert "a residual stream, outside <code>scope=filters</code></td>" in page
    assert "kept by --keep layer*" in page


def test_nothing_measured(small_plan: Any) -> None:
    text = _text(render_report(small_plan, None, None))
    assert "Latency was not measured." in text
    assert "Accuracy was not measured." in text
    assert "Not checked." in text


@pytest.mark.parametrize(
    ("ratio", "low", "high", "words"),
    [
        (0.5, 0.4, 0.6, "2.00× slower"),
        (1.01, 0.98, 1.04, "no clear speed-up"),
        (1.2, 1.1, 1.3, "1.20× faster"),
    ],
)
def test_speedup_is_claimed_only_with_its_whole_interval(
    small_plan: Any, bench: Any, ratio: float, low: float, high: float, words: str
) -> None:
    bench["batches"][0]["speedup"] |= {"ratio": ratio, "low": low, "high": high}
    assert f"{words} at batch 1 on" in _text(render_report(small_plan, None, bench))


def test_how_to_load(small_plan: Any) -> None:
    small_plan["source"]["input_shape"] = [1, 8, 8]
    code = "\n".join("".join(block.itertext()) for block in _parse(render_report(small_plan, None, None)).iter("pre"))
    assert 'onnxruntime as ort\nsession = ort.InferenceSession("model.onnx"' in code
    assert "np.zeros((1, 1, 8, 8), dtype=np.float32)" in code
    assert "{name: images}" in code
    assert 'network = pruneport.load("DIR")' in code


def _make_hostile(value: Any) -> Any:
    """Replace every text value by a hostile one, except where it chooses a path in the code."""
    if isinstance(value, dict):
        return {key: item if key == "provider" else _make_hostile(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_make_hostile(item) for item in value]
    return _HOSTILE if isinstance(value, str) else value


def test_no_text_can_inject_markup(plan: Any, verify: Any, bench: Any) -> None:
    plan, verify, bench = (_make_hostile(part) for part in (plan, verify, bench))
    plan["source"]["model_args"] = plan["libraries"] = bench["device"] = bench["settings"] = {_HOSTILE: _HOSTILE}
    plan["request"]["keep"] = [_HOSTILE]
    page = render_report(plan, verify, bench)
    root = _parse(page)
    assert not [element for element in root.iter() if element.tag.rpartition("}")[2] in ("script", "img")]
    assert not [name for element in root.iter() for name in element.attrib if name.startswith("on")]
    assert _HOSTILE in _text(page)


def test_control_and_direction_characters_do_not_reach_the_page(small_plan: Any) -> None:
    small_plan["source"]["spec"] = "torchvision:resnet50\x00\u202e\ud800\nnext"
    page = render_report(small_plan, None, None)
    page.encode("utf-8")
    assert "resnet50\ufffd\ufffd\ufffd next" in _text(page)


def test_page_is_whole_in_itself(page: str) -> None:
    root = _parse(page)
    for element in root.iter():
        for name, value in element.attrib.items():
            if name.rpartition("}")[2] in ("src", "href", "srcset", "action", "data", "poster"):
                assert value.startswith("#")
    assert not list(root.iter("link"))
    assert "@import" not in page
    assert set(re.findall(r"url\((.)", page)) == {"#"}
    assert set(re.findall(r"https?://[^\"<\s]+", page)) == {"http://www.w3.org/2000/svg"}
    identities = [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
    assert len(identities) == len(set(identities))


def test_page_is_accessible(page: str) -> None:
    root = _parse(page)
    assert root.get("lang") == "en"
    assert root.findtext("head/title") == "torchvision:resnet50, pruned: report"
    for table in root.iter("table"):
        assert all(cell.get("scope") == "col" for cell in table.iterfind("thead/tr/th"))
        assert all(row.find("th[@scope='row']") is not None for row in table.iterfind("tbody/tr"))
    for plot in root.iter("{http://www.w3.org/2000/svg}svg"):
        assert plot.get("role") == "img"
        assert plot.get("aria-label")


def test_same_input_same_page(plan: Any, verify: Any, bench: Any, page: str) -> None:
    assert render_report(plan, verify, bench) == page


@pytest.mark.browser
@pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on PATH")
def test_a_browser_shows_the_page(plan: Any, verify: Any, bench: Any, tmp_path: Path) -> None:
    plan["groups"] = [
        dict(copy.deepcopy(group), name=f"{index}.{group['name']}") for index in range(3) for group in plan["groups"]
    ]
    plan["groups"][5]["reason"] = _HOSTILE
    page, picture = tmp_path / "report.html", tmp_path / "report.png"
    page.write_text(render_report(plan, verify, bench), encoding="utf-8")

    document = browse(page, tmp_path / "profile", "--dump-dom")
    assert "All 114 groups as a table" in document
    assert document.count("<svg") == 5  # each plot wide and narrow, and the drawing
    assert document.count("<tr") > 114
    assert "<script" not in document
    assert "<img" not in document

    browse(page, tmp_path / "other-profile", f"--screenshot={picture}", "--window-size=900,2400")
    with Image.open(picture) as image:
        colours = image.convert("RGB").getcolors(maxcolors=1 << 24)
    assert colours is not None
    assert len(colours) > 200
    by_colour = {colour: count for count, colour in colours}
    assert by_colour[0x14, 0x68, 0x8C] > 20_000  # the kept bars of the groups' plot


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on PATH")
def test_nothing_scrolls_sideways_on_a_narrow_screen(plan: Any, verify: Any, bench: Any, tmp_path: Path) -> None:
    verify["accuracy"] |= {"only_dense": 95, "only_pruned": 8}
    plan["groups"][3]["name"] = "features.stage.block." * 4 + "conv"
    page = render_report(plan, verify, bench)
    found = layouts(page, tmp_path)
    assert len(found) == 5
    for measured in found:
        assert measured["scroll"] <= measured["width"], measured
        assert measured["right"] <= measured["width"], measured
        assert all('class="drawing"' in element for element in measured["wide"])  # it scrolls inside its own box
        assert len(measured["wide"]) == (measured["width"] < 500)
        assert measured["shown"] == 3  # one of each two plots, and the drawing
