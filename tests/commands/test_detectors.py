"""Detectors and segmenters all the way: pruned, proved, exported whole, compared, timed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from tests.support.command_line import one_line, read_json

QUICK = ("--repeats", "2", "--warmup", "1")
OWN = Path(__file__).parents[1] / "support" / "detection_networks.py"
SMALL = ("--input-shape", 3, 64, 64, "--flops", 0.6, "--round-to", 2)


@pytest.mark.slow
def test_a_detector_shipped_exported_verified_timed(run: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = run("ship", f"{OWN}:ssd", *SMALL, *QUICK, "--out", out)
    assert ran.code == 0, ran.err
    said = "the network finds boxes, another number in every image: its ONNX files take one image of 64 x 64 at a time"
    assert said in one_line(ran.err)
    assert "each has its match in the other (label, IoU of 0.99 and score within" in one_line(ran.out)
    plan, verified = read_json(out / "plan.json"), read_json(out / "verify.json")
    assert plan["pruned"]["macs"] < 0.65 * plan["dense"]["macs"]
    assert not [group for group in plan["groups"] if "removing some of it" in group["reason"]]
    for entry in verified["parity"]:
        found = entry["detections"]
        assert (entry["batch"], entry["ok"], entry["constant"], entry["top1_agreement"]) == (1, True, False, None)
        assert found["torch"] == found["onnx"] > 50
        assert found["unmatched"] == 0
        assert found["least_iou"] == 0.99 < found["lowest_iou"]
    assert (verified["accuracy"], verified["agreement"]) == (None, None)
    assert [entry["batch"] for entry in read_json(out / "bench.json")["batches"]] == [1]
    report, card = ((out / name).read_text(encoding="utf-8") for name in ("report.html", "README.md"))
    assert "detections in torch" in report
    assert "each has its match in the other" in report
    for text in (report, card):
        assert "boxes (two corners), scores and labels" in text
        assert "a classifier" not in text

    session = onnxruntime.InferenceSession(str(out / "model.onnx"), providers=["CPUExecutionProvider"])
    image = np.random.default_rng(5).standard_normal((1, 3, 64, 64), dtype=np.float32)
    boxes, scores, labels = session.run(None, {"input": image})
    assert boxes.shape == (len(scores), 4)
    assert labels.dtype == np.int64
    assert len(scores) > 10

    assert run("export", out, "--factory", f"{OWN}:ssd").code == 0
    assert run("verify", out, "--factory", f"{OWN}:ssd").code == 0
    assert run("bench", out, *QUICK).code == 0
    ran = run("verify", out, "--factory", f"{OWN}:ssd", "--parity-batches", 2)
    assert (ran.code, "exported for a batch of 1 alone" in one_line(ran.err)) == (2, True)


def test_what_does_not_go_with_a_detector(run: Any, tmp_path: Path) -> None:
    ship = ("ship", f"{OWN}:ssd", *SMALL, *QUICK, "--out", tmp_path / "out")
    ran = run(*ship, "--batches", 4)
    assert (ran.code, "batches must be 1 alone" in one_line(ran.err)) == (2, True)
    ran = run(*ship, "--dynamic", "batch,height,width")
    assert (ran.code, "finds boxes in images of 64 x 64" in one_line(ran.err)) == (2, True)
    for label in "abcd":  # as many as a box has corners
        (tmp_path / "images" / label).mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(tmp_path / "images" / label / "1.png")
    ran = run(*ship, "--images", tmp_path / "images")
    assert (ran.code, "has 4 class folders; the network scores no classes" in one_line(ran.err)) == (2, True)
    ran = run(*ship, "--no-dry-export", "--calibration", tmp_path / "images" / "a")
    assert (ran.code, "the network returns detections" in one_line(ran.err)) == (2, True)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "outputs"), [("yolo", ["output"]), ("detr", ["pred_logits", "pred_boxes"])])
def test_detectors_of_fixed_shapes(name: str, outputs: list[str], run: Any, tmp_path: Path) -> None:
    """A YOLO-like network and one with nn.Transformer: any batch, compared element by element."""
    out = tmp_path / "out"
    ran = run("ship", f"{OWN}:{name}", *SMALL, *QUICK, "--batches", 1, "--parity-batches", 1, 3, "--out", out)
    assert ran.code == 0, ran.err
    plan, verified = read_json(out / "plan.json"), read_json(out / "verify.json")
    assert plan["pruned"]["macs"] < 0.65 * plan["dense"]["macs"]
    assert not [group for group in plan["groups"] if "removing some of it" in group["reason"]]
    assert [(e["batch"], e["ok"], e["constant"], e["detections"]) for e in verified["parity"]] == [
        (batch, True, False, None) for _ in range(2) for batch in (1, 3)
    ]
    session = onnxruntime.InferenceSession(str(out / "model.onnx"), providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == outputs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "scope"),
    [
        ("ssdlite", 320, "filters"),
        ("retinanet", 64, "filters"),
        ("fcos", 64, "channels"),
        ("two_stages", 64, "filters"),
    ],
)
def test_torchvisions_detectors(name: str, size: int, scope: str, run: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    source = (f"{OWN}:{name}", "--input-shape", 3, size, size, "--scope", scope, "--round-to", 2)
    ran = run("ship", *source, "--flops", 0.7, *QUICK, "--out", out)
    assert ran.code == 0, ran.err
    plan, verified = read_json(out / "plan.json"), read_json(out / "verify.json")
    assert 0.65 < plan["pruned"]["macs"] / plan["dense"]["macs"] < 0.75
    assert not [group for group in plan["groups"] if "removing some of it" in group["reason"]]
    for entry in verified["parity"]:
        assert entry["ok"]
        assert not entry["constant"]
        assert entry["detections"]["torch"] > 50


@pytest.mark.slow
@pytest.mark.parametrize(("name", "outputs"), [("deeplab", ["out"]), ("fcn", ["out", "aux"])])
def test_torchvisions_segmenters(name: str, outputs: list[str], run: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    source = (f"{OWN}:{name}", "--input-shape", 3, 64, 64, "--flops", 0.7, "--scope", "channels")
    ran = run("ship", *source, *QUICK, "--batches", 1, "--parity-batches", 1, 2, "--out", out)
    assert ran.code == 0, ran.err
    session = onnxruntime.InferenceSession(str(out / "model.onnx"), providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == outputs
    found = session.run(None, {"input": np.zeros((2, 3, 64, 64), np.float32)})
    assert [array.shape for array in found] == [(2, 5, 64, 64)] * len(outputs)
