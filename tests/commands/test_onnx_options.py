"""ONNX as deployers ask for it, all the way: opset, names, open sizes, weights beside the file; and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

from pruneport.errors import BundleError
from pruneport.export.bundle.bundle import MODEL_ONNX, check_hashes, open_bundle
from tests.support.command_line import DIGITS, QUICK, one_line, read_json

_OPEN = "any batch size, and images of any height and width that the network itself takes"


def _pages(folder: Path) -> list[str]:
    return [(folder / name).read_text(encoding="utf-8") for name in ("README.md", "report.html")]


@pytest.mark.slow
def test_all_of_it_shipped_verified_timed_and_exported_back(run: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = ("--opset", 21, "--input-names", "pixels", "--output-names", "scores", "--external-data")
    asked += ("--dynamic", "batch,height,width", "--parity-batches", 1, 3)
    ran = run("ship", *DIGITS, *QUICK, *asked, "--out", out)
    assert ran.code == 0, ran.err
    for name in ("dense.onnx", "model.onnx"):
        model = onnx.load(out / name, load_external_data=False)
        assert [entry.version for entry in model.opset_import] == [21]
        ends = [*model.graph.input, *model.graph.output]
        assert [value.name for value in ends] == ["pixels", "scores"]
        dims = [dim.dim_param or dim.dim_value for dim in ends[0].type.tensor_type.shape.dim]
        assert dims == ["batch", 1, "height", "width"]
        assert (out / f"{name}.data").stat().st_size > (out / name).stat().st_size
    assert {"dense.onnx.data", "model.onnx.data"} <= read_json(out / "manifest.json")["files"].keys()
    entries = read_json(out / "verify.json")["parity"]
    assert [(e["network"], e["batch"], e["size"]) for e in entries] == [
        (name, batch, size) for name in ("dense", "pruned") for size in (None, [40, 72]) for batch in (1, 3)
    ]
    assert read_json(out / "bench.json")["settings"]["image_shape"] == [1, 8, 8]
    assert "seeded, 40 × 72" in (out / "report.html").read_text(encoding="utf-8")
    assert all(_OPEN in text for text in _pages(out))

    ran = run("verify", out, "--parity-batches", 2)
    assert (ran.code, "seeded 40x72" in ran.out) == (0, True), ran.err
    assert all(_OPEN in text for text in _pages(out))
    assert run("bench", out, *QUICK).code == 0
    assert all(_OPEN in text for text in _pages(out))

    ran = run("export", out)
    assert ran.code == 0, ran.err
    assert "which takes any batch size:" in (out / "README.md").read_text(encoding="utf-8")
    assert not list(out.glob("*.data"))
    assert read_json(out / "manifest.json")["files"].keys() >= {"dense.onnx", "model.onnx"}
    assert not [name for name in read_json(out / "manifest.json")["files"] if name.endswith(".data")]
    assert run("verify", out, "--parity-batches", 2).code == 0
    assert all(entry["size"] is None for entry in read_json(out / "verify.json")["parity"])


@pytest.mark.slow
def test_weights_beside_the_file_are_checked_like_it(run: Any, bundle: Path) -> None:
    assert run("export", bundle, "--external-data").code == 0
    data, whole = bundle / "model.onnx.data", (bundle / "model.onnx.data").read_bytes()
    data.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    for verb in ("verify", "bench"):
        ran = run(verb, bundle)
        assert (ran.code, "model.onnx.data was changed" in one_line(ran.err)) == (2, True)
    data.unlink()
    ran = run("bench", bundle)
    assert (ran.code, "model.onnx.data is missing" in one_line(ran.err)) == (2, True)
    data.write_bytes(whole)
    assert run("bench", bundle, *QUICK).code == 0
    assert check_hashes(open_bundle(bundle))


def test_a_file_of_weights_that_the_manifest_does_not_know(bundle: Path) -> None:
    (bundle / "model.onnx.data").write_bytes(b"weights")
    with pytest.raises(BundleError, match=r"model\.onnx\.data is not in the manifest"):
        open_bundle(bundle).path(MODEL_ONNX)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--opset", "17"), "--opset is 17; expected 18 to "),
        (("--opset", "99"), "the ONNX Runtime here takes none above."),
        (("--dynamic", "batch,height,width", "--batch-size-fixed", "1"), "and --batch-size-fixed is 1; give one of"),
        (("--input-names", "a", "b"), "--input-names are 'a', 'b'; expected one"),
        (("--output-names", "a b"), "--output-names has 'a b'; expected at most 200 letters"),
        (("--input-names", "a", "--output-names", "a"), "have a more than once"),
        (("--output-names", "a", "b"), "--output-names are a, b: 2 for the 1 outputs output; give one for each"),
    ],
)
def test_what_cannot_be_is_met_before_any_work(flags: tuple[str, ...], said: str, run: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = run("ship", *DIGITS, *flags, "--out", out)
    assert ran.code == 2
    assert said in one_line(ran.err)
    assert not out.exists()


def test_a_network_of_one_size_is_named(run: Any, tmp_path: Path) -> None:
    out, arguments = tmp_path / "out", ("--model-arg", "img_size=32", "--model-arg", "patch_size=8", "--flops", 0.5)
    vit = ("timm:vit_tiny_patch16_224", *arguments, "--model-arg", "depth=1", "--input-shape", 3, 32, 32)
    ran = run("ship", *vit, "--dynamic", "batch,height,width", "--out", out)
    assert ran.code == 2
    said = "takes images of 32 x 32 and not of 64 x 96: Input height (64) doesn't match model (32). Its height"
    assert said in one_line(ran.err)
    assert not out.exists()
