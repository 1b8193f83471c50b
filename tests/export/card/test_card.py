from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import yaml
from markdown_it import MarkdownIt
from onnx import TensorProto, helper

from pruneport.export.card.card import model_card
from pruneport.export.card.front_matter import front_matter
from pruneport.export.card.provenance import provenance
from pruneport.export.card.summary import comparisons, device_name, headline, onnx_example
from pruneport.export.card.words import clean
from pruneport.export.onnx.form import InputSizes

_HOSTILE = (
    "a|b `c` ``d`` <script>alert(1)</script> [x](http://evil.example) ![y](z) *e* _f_ \\ \n# g\n- h www.evil.example"
)


def _html(card: str) -> str:
    # linkify is off without an extra package; the escaped colon is tested on the Markdown itself
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(card)


def test_card_says_what_it_is(plan: Any, verify: Any, bench: Any) -> None:
    card = model_card(plan, verify, bench)
    head, front, page = card.split("---\n", 2)
    assert (head, yaml.safe_load(front)) == ("", front_matter(plan, verify, bench).to_dict())
    assert page.startswith("\n# `torchvision:resnet50`, pruned\n")
    html = _html(card)
    assert f"<strong>{headline(plan, verify, bench)}</strong>" in html
    assert "<p>1.71 times as fast at batch 1; 34.8 points of top-1 lost on 250 images.</p>" in html
    assert "<blockquote>\n<p><strong>Warning.</strong> Accuracy fell by 34.8 points" in html
    assert "<td>Compute, MACs</td>" in html
    assert "−49.9 %" in html
    assert "Accuracy was measured on 250 images of <code>imagenet-samples</code> only." in html
    assert "Latency holds for AMD EPYC 9654" in html


def test_card_shows_how_to_load(plan: Any) -> None:
    html = _html(model_card(plan, None, None))
    assert "onnxruntime as ort" in html
    assert "np.zeros((1, 3, 224, 224)" in html
    assert "network = pruneport.load(&quot;DIR&quot;)" in html


@pytest.mark.parametrize("count", [1, 3])
def test_the_lines_that_run_it_take_every_output(
    count: int, plan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    plan["source"]["input_shape"] = [1, 4, 4]
    names = [f"level{index}" for index in range(count)]
    given, *made = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 1, 4, 4]) for name in ("input", *names)
    ]
    nodes = [helper.make_node("Relu", ["input"], [name]) for name in names]
    graph = helper.make_graph(nodes, "backbone", [given], made)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), "model.onnx")
    exec(onnx_example(plan), {})
    assert capsys.readouterr().out.splitlines() == [f"{name} (1, 1, 4, 4)" for name in names]


@pytest.mark.parametrize(
    ("embedded", "images", "said"),
    [
        ("uint8-nhwc", "np.zeros((1, 224, 200, 3), dtype=np.uint8)", "(B, H, W, C) in uint8, from 0 to 255"),
        ("float-nchw", "np.zeros((1, 3, 224, 200), dtype=np.float32)", "(B, C, H, W) in float32, from 0 to 1"),
    ],
)
def test_card_says_what_is_left_to_do_to_images(embedded: Any, images: str, said: str, plan: Any) -> None:
    plan["source"]["input_shape"] = [3, 224, 200]
    html = _html(model_card(plan, None, None, InputSizes(embedded=embedded)))
    assert f"images = {images}  # yours, resized and cropped, not normalised" in html
    assert f"The ONNX files take images {said}, and normalise them themselves" in html
    assert "normalise them themselves" not in _html(model_card(plan, None, None))


def test_card_says_what_was_not_measured(plan: Any) -> None:
    card = model_card(plan, None, None)
    assert "latency not measured" in card
    assert "Latency was not measured." in card
    assert "Accuracy was not measured" in card
    assert "were not compared" in card


def test_card_of_untrained_weights_claims_no_accuracy(plan: Any, verify: Any, bench: Any) -> None:
    plan["source"] |= {"trained": False, "checkpoint": None}
    card = model_card(plan, verify, bench)
    assert "Architecture only" in card
    assert "57.2" not in card
    assert "as the source builds them, seed 0" in card
    assert "No `checkpoint` and no `weights` were given" in card
    assert "untrained" not in card  # a factory may load weights of its own


def test_card_names_failed_checks(plan: Any, verify: Any) -> None:
    verify["ok"] = verify["checks"][1]["ok"] = False
    assert "**Verification failed**: `onnx.checker`." in model_card(plan, verify, None)


def test_names_from_outside_stay_text(plan: Any, verify: Any, bench: Any) -> None:
    plan["source"]["spec"] = plan["source"]["checkpoint"] = plan["note"] = _HOSTILE
    plan["libraries"] = {_HOSTILE: _HOSTILE}
    plan["request"] |= {"keep": [_HOSTILE], "criterion": _HOSTILE, "target": _HOSTILE}
    verify["accuracy"]["folder"] = _HOSTILE
    bench["device"]["cpu"] = _HOSTILE
    card = model_card(plan, verify, bench)
    html = _html(card)
    for tag in ("<script", "<a ", "<img", "<em>", "<h3"):
        assert tag not in html
    assert html.count("<h1>") == 1
    assert html.count("<th>") + html.count("<th ") == 4
    outside_code = html.split("<strong>")[1].split("</strong>")[0]
    assert "a|b `c` ``d`` &lt;script&gt;" in outside_code
    bold = next(line for line in card.splitlines() if line.startswith("**"))
    assert "http://" not in bold
    assert "www.evil" not in bold


def test_options_are_code_in_warning_and_note(plan: Any, verify: Any) -> None:
    plan["note"] = "[x] reached less; a smaller `round_to` does. Earlier ones: --round-to; see www.evil.example"
    html = _html(model_card(plan, verify, None))
    assert "calibration images (<code>calibration=FOLDER</code>), a higher <code>flops</code>" in html
    assert "[x] reached less; a smaller <code>round_to</code> does. Earlier ones: --round-to; see www" in html


def test_odd_targets_do_not_break_the_sentence(plan: Any) -> None:
    plan["request"]["target"] = "{x} {0.__class__}"
    assert ("Asked", "{x} {0.__class__} 50.0 %") in provenance(plan)


def test_accuracy_known_in_part(plan: Any, verify: Any) -> None:
    verify["accuracy"] |= {"dense_torch": None, "pruned_onnx": None}
    rows = comparisons(plan, verify, None)
    assert rows[-1] == ("Top-1 accuracy, torch", "", "57.2 % (51.0 to 63.2)", "")
    assert "top-1" not in headline(plan, verify, None)


def test_headline_takes_the_smallest_batch_and_the_gpu(plan: Any, bench: Any) -> None:
    bench["batches"].reverse()
    bench["provider"] = "cuda"
    bench["device"]["gpu"] = "NVIDIA H200"
    assert headline(plan, None, bench).endswith("1.71× faster at batch 1 on NVIDIA H200")
    assert device_name({"provider": "cpu", "device": {}}) == ""
    assert device_name({"provider": "cpu", "device": {"cpu": "Intel(R) Xeon(R) 6"}}) == "Intel Xeon 6"


def test_clean_leaves_one_printable_line() -> None:
    assert clean("a\r\n\tb\u202e\x07\ud800é") == "a b\ufffd\ufffd\ufffdé"


@pytest.mark.parametrize(("spec", "warned"), [("timm:convnext_tiny", False), ("nets/mine.py:build", True)])
def test_code_that_is_no_librarys_is_announced(plan: Any, spec: str, warned: bool) -> None:
    plan["source"]["spec"] = spec
    assert ("trust_source=True" in _html(model_card(plan, None, None))) is warned


def test_weights_and_surgery_in_the_provenance(plan: Any) -> None:
    plan["source"]["checkpoint"] = None
    plan["masked_error"] = 1.2345e-6
    pairs = dict(provenance(plan))
    assert pairs["Weights"] == "as the source builds them"
    assert "within 1.2e-06 of their size" in pairs["Surgery"]


def test_recovery_is_told_by_what_was_held_out_first(plan: Any) -> None:
    done = {"name": "reconstruct", "images": 256, "error_before": 0.9, "error_after": 0.018}
    plan["recovery"] = done | {
        "heldout": 26,
        "heldout_error_before": 1.2,
        "heldout_error_after": 0.59,
        "heldout_agreement_before": 0.1,
        "heldout_agreement": 0.44,
    }
    assert dict(provenance(plan))["Recovery"] == (
        "weights solved by least squares on 256 unlabelled inputs. On 26 held-out inputs, which no score, choice or "
        "solve has seen: output error 0.59 (before recovery 1.2) of the dense outputs' variance, same top-1 as the "
        "dense network 44.0 % (before recovery 10.0 %). In-sample, on the calibration inputs themselves: 0.018 (before "
        "recovery 0.9)."
    )
    plan["recovery"] |= {"heldout_agreement_before": None, "heldout_agreement": None}
    assert "top-1" not in dict(provenance(plan))["Recovery"]
    plan["recovery"] = done
    assert dict(provenance(plan))["Recovery"].endswith(
        "On held-out inputs it was not measured, which takes 32 calibration inputs at least. In-sample, which says "
        "nothing of other inputs: output error 0.018 (before recovery 0.9) of the dense outputs' variance."
    )
    did = {"steps": 9, "planned": 12, "learning_rate": 0.001, "tuning": 4, "distance_before": 0.5}
    did |= {"distance_after": 0.25, "stopped": "no gain", "kept": "imitation"}
    plan["recovery"] = done | {"name": "imitate", "imitation": did}
    assert dict(provenance(plan))["Recovery"].endswith(
        "variance. Imitation brought the distance from the dense features from 0.5 to 0.25 on 4 inputs that were set "
        "aside to choose by (9 of 12 steps at learning rate 0.001, ended since more brought no gain)."
    )
    did |= {"stopped": "steps", "steps": 12, "kept": "reconstruction"}
    assert dict(provenance(plan))["Recovery"].endswith(
        "Imitation brought nothing on 4 inputs that were set aside to choose by, so the reconstructed weights were "
        "kept (12 of 12 steps at learning rate 0.001)."
    )
    plan["recovery"] = done | {"name": "none", "error_after": 0.9}
    assert dict(provenance(plan))["Recovery"].startswith("none: plain pruning, measured on 256 unlabelled inputs.")
    assert "before recovery" not in dict(provenance(plan))["Recovery"]


def test_card_says_which_batch_sizes_run(plan: Any) -> None:
    assert "takes any batch size" in model_card(plan, None, None)
    card = model_card(plan, None, None, InputSizes(batch=4))
    assert "takes batches of 4, and no others:" in card
    assert "np.zeros((4, 3, 224, 224)" in card


def test_card_says_that_height_and_width_are_open(plan: Any) -> None:
    card = model_card(plan, None, None, InputSizes(any_size=True))
    assert "takes any batch size, and images of any height and width that the network itself takes:" in card
