"""ONNX files that normalise images themselves, all the way: shipped, verified, timed, used as the card says."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from PIL import Image

from pruneport.export.onnx.onnx_file import read_metadata
from tests.support.command_line import DIGITS, QUICK, one_line, read_json


def _scores(file: Path, images: Any) -> Any:
    return onnxruntime.InferenceSession(file).run(None, {"input": images})[0]


def _run_card(card: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the first example in a model card, as it is printed."""
    found = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert found is not None
    monkeypatch.chdir(folder)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(found[1], {})
    return printed.getvalue()


def _check_form(folder: Path, form: str) -> None:
    """What is left to do outside is said wherever it is said."""
    said = read_json(folder / "preprocessor.json")
    assert (said["do_rescale"], said["do_normalize"]) == (form == "float-nchw", False)
    assert said.pop("id2label")["9"] == "9"
    for name in ("dense.onnx", "model.onnx"):
        metadata = read_metadata(folder / name)
        assert metadata["embed_preprocessing"] == form
        assert json.loads(metadata["preprocessing"]) == said
    for page in ("README.md", "report.html"):
        text = (folder / page).read_text(encoding="utf-8").replace("\\", "")
        assert "normalise them themselves: resize and crop before, and do not normalise" in text, page
    details = [check["detail"] for check in read_json(folder / "verify.json")["checks"]]
    assert sum(f"embedded as {form}" in detail for detail in details) == 2


@pytest.mark.slow
def test_shipped_files_take_photos_as_they_are(
    run: Any, shipped: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    asked = ("--embed-preprocessing", "uint8-nhwc", "--dynamic", "batch,height,width", "--parity-batches", 1, 3)
    ran = run("ship", *DIGITS, *QUICK, *asked, "--images", digits, "--images-limit", 40, "--out", out)
    assert ran.code == 0, ran.err
    _check_form(out, "uint8-nhwc")
    assert read_json(out / "bench.json")["settings"]["image_shape"] == [8, 8, 1]
    verified = read_json(out / "verify.json")
    assert [entry["size"] for entry in verified["parity"] if entry["inputs"] == "seeded"] == [
        *(None, None, [40, 72], [40, 72]),
        *(None, None, [40, 72], [40, 72]),
    ]
    assert verified["accuracy"]["images"] == 40
    assert verified["accuracy"]["pruned_onnx"] == verified["accuracy"]["pruned_torch"]
    assert _run_card((out / "README.md").read_text(encoding="utf-8"), out, monkeypatch) == "output (1, 10)\n"

    files = sorted(digits.rglob("*.png"))[::45]
    pixels = np.stack([np.asarray(Image.open(file)) for file in files])
    inputs = ((pixels[:, None] / 255 - 0.5) / 0.5).astype(np.float32)
    for name in ("dense.onnx", "model.onnx"):  # the same networks, shipped to take normalised inputs
        np.testing.assert_allclose(_scores(out / name, pixels[..., None]), _scores(shipped / name, inputs), atol=1e-4)


@pytest.mark.slow
def test_export_puts_it_in_and_takes_it_out_again(
    run: Any, bundle: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (bundle / "preprocessor.json").read_bytes()
    assert run("verify", bundle, "--images", digits, "--images-limit", 40).code == 0
    accuracy = read_json(bundle / "verify.json")["accuracy"]
    ran = run("export", bundle, "--embed-preprocessing", "float-nchw", "--batch-size-fixed", 3)
    assert ran.code == 0, ran.err
    ran = run("verify", bundle, "--images", digits, "--images-limit", 40)
    assert ran.code == 0, ran.err
    assert read_json(bundle / "verify.json")["accuracy"] == accuracy
    assert run("bench", bundle, "--repeats", "2", "--warmup", "1").code == 0
    _check_form(bundle, "float-nchw")
    assert read_json(bundle / "bench.json")["settings"]["image_shape"] == [1, 8, 8]
    card = (bundle / "README.md").read_text(encoding="utf-8")
    assert _run_card(card, bundle, monkeypatch) == "output (3, 10)\n"

    ran = run("verify", bundle, "--images", digits, "--mean", 0.4)
    assert ran.code == 2
    said = (
        "--mean and --std are (0.4,) and (0.5,), and the ONNX files normalise images themselves, by (0.5,) and (0.5,)"
    )
    assert said in one_line(ran.err)

    assert run("export", bundle).code == 0
    assert (bundle / "preprocessor.json").read_bytes() == before
    assert "embed_preprocessing" not in read_metadata(bundle / "model.onnx")
    assert "normalise them themselves" not in (bundle / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_file_that_holds_another_normalisation_than_its_plan_fails(run: Any, bundle: Path, rehash: Any) -> None:
    assert run("export", bundle, "--embed-preprocessing", "uint8-nhwc").code == 0
    model = onnx.load(bundle / "model.onnx")
    (mean,) = [weight for weight in model.graph.initializer if weight.name == "preprocessing.mean"]
    mean.CopyFrom(numpy_helper.from_array(np.full((1, 1, 1), 0.45, np.float32), mean.name))
    onnx.save(model, bundle / "model.onnx")
    rehash(bundle)
    ran = run("verify", bundle, "--parity-batches", 2)
    assert (ran.code, "pruned fp32 on seeded inputs, batch 2" in one_line(ran.err)) == (1, True)


@pytest.mark.slow
def test_what_nobody_knows_is_asked_for(run: Any, tmp_path: Path) -> None:
    factory = tmp_path / "users_embedding.py"
    factory.write_text(
        "from torch import nn\n"
        "def build():\n"
        "    maps = [nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3)]\n"
        "    return nn.Sequential(*maps, nn.Flatten(), nn.Linear(128, 4))\n"
    )
    given = (
        f"{factory}:build",
        "--input-shape",
        3,
        8,
        8,
        "--flops",
        0.6,
        "--recover",
        "none",
        "--out",
        tmp_path / "out",
    )
    ran = run("ship", *given, "--embed-preprocessing", "uint8-nhwc")
    assert ran.code == 2
    assert "--embed-preprocessing: nothing is known of how images become the network's inputs" in one_line(ran.err)
    assert "Give --mean and --std, of pixels in 0 to 1" in one_line(ran.err)
    assert not (tmp_path / "out").exists()

    assert run("compress", *given).code == 0
    held = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    ran = run("export", tmp_path / "out", "--trust-source", "--embed-preprocessing", "float-nchw")
    assert (ran.code, "nothing is known" in ran.err) == (2, True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == held

    numbers = ("--mean", 0.4, 0.5, 0.6, "--std", 0.25)
    assert run("compress", *given, *numbers, "--overwrite").code == 0
    ran = run("export", tmp_path / "out", "--trust-source", "--embed-preprocessing", "float-nchw")
    assert ran.code == 0, ran.err
    assert run("verify", tmp_path / "out", "--trust-source", "--parity-batches", 2).code == 0
