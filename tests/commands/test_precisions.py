"""fp16 and int8 all the way: shipped, exported, verified, timed, from the command line and from Python."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import pruneport
from pruneport.commands.results import ShipResult
from pruneport.errors import InputError
from pruneport.export.hub import open_any_bundle
from pruneport.export.onnx.onnx_file import read_metadata
from pruneport.export.records import read_verified
from tests.support.command_line import DIGITS, QUICK, one_line, read_json

FILES = {f"{network}{precision}.onnx" for network in ("dense", "model") for precision in ("", ".fp16", ".int8")}


@pytest.fixture(scope="module")
def made(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> ShipResult:
    """Shipped in all precisions, calibrated on half of the images and counted on all."""
    return pruneport.ship(
        "pruneport:digits_resnet",
        weights="DEFAULT",
        macs=0.5,
        out=tmp_path_factory.mktemp("made") / "bundle",
        calibration=digits,
        calibration_images=64,
        images=digits,
        precisions=["fp32", "fp16", "int8"],
        batches=[1],
        repeats=2,
        warmup=1,
    )


@pytest.fixture
def precise(made: ShipResult, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made.folder, tmp_path / "precise"))


@pytest.mark.slow
def test_every_precision_is_made_and_compared_on_real_images(made: ShipResult) -> None:
    assert {path.name for path in made.folder.glob("*.onnx")} == FILES
    assert set(read_json(made.folder / "manifest.json")["files"]) >= FILES
    records = {(record.network, record.precision): record for record in made.verification.precisions}
    assert set(records) == {(n, p) for n in ("dense", "pruned") for p in ("fp32", "fp16", "int8")}
    for (_, precision), record in records.items():
        assert (record.inputs, record.count, record.fault) == ("images", 450, "")
        assert record.agreement is not None
        assert record.top1 is not None
        assert record.output_error is not None
        assert record.agreement >= {"fp32": 1.0, "fp16": 0.995, "int8": 0.98}[precision]
        assert record.output_error <= {"fp32": 0.0, "fp16": 1e-4, "int8": 0.01}[precision]
        assert record.top1 >= 0.98
    assert made.accuracy is not None
    assert records["pruned", "fp32"].top1 == made.accuracy.pruned_onnx
    assert records["dense", "fp32"].top1 == made.accuracy.dense_torch
    assert records["pruned", "int8"].provider == "cpu"
    halves = [entry for entry in made.verification.parity if entry.precision == "fp16"]
    assert [entry.inputs for entry in halves if entry.network == "pruned"] == ["seeded"] * 3 + ["images"]
    assert all(entry.ok and 1e-3 < entry.rtol < 2e-2 for entry in halves)
    sizes = {name: (made.folder / name).stat().st_size for name in FILES}
    assert sizes["model.int8.onnx"] < sizes["model.fp16.onnx"] < sizes["model.onnx"]
    (entry,) = made.bench.batches
    assert [times.precision for times in entry.precisions] == ["fp16", "int8"]
    assert all(len(times.pruned.samples_ms) == len(times.dense.samples_ms) == 2 for times in entry.precisions)


@pytest.mark.slow
def test_what_was_found_is_in_console_card_and_report(made: ShipResult, precise: Path, run: Any) -> None:
    read_verified((precise / "verify.json").read_bytes(), "verify.json", "")
    card = (precise / "README.md").read_text(encoding="utf-8")
    assert "| | fp32 | fp16 | int8 |" in card
    assert "`model.onnx` · `model.fp16.onnx` · `model.int8.onnx`" in card
    page = (precise / "report.html").read_text(encoding="utf-8")
    assert "<h2>Precisions</h2>" in page
    assert "top-1 accuracy against latency: dense fp32" in page
    for text in (card, page):
        assert "int8 is made for ONNX Runtime" in text.replace("\\", "")
        assert "450 images" in text
    ran = run("bench", precise, *QUICK, "--precision", "int8")
    assert ran.code == 0, ran.err
    assert [times["precision"] for times in read_json(precise / "bench.json")["batches"][0]["precisions"]] == ["int8"]
    assert "fp16 is for GPUs" not in ran.out
    ran = run("verify", precise, "--parity-batches", 1)
    assert ran.code == 0, ran.err
    kept = read_json(precise / "verify.json")["precisions"]
    assert {record["inputs"] for record in kept} == {"images"}  # what was seen on images says more than random inputs
    assert "Agreement with fp32, pruned" in ran.out


@pytest.mark.slow
def test_export_makes_them_and_takes_them_away(run: Any, bundle: Path, digits: Path) -> None:
    ran = run("export", bundle, "--precisions", "fp16", "int8", "--calibration", digits, "--calibration-images", 32)
    assert ran.code == 0, ran.err
    assert {path.name for path in bundle.glob("*.onnx")} == FILES
    assert read_metadata(bundle / "dense.int8.onnx")["calibration"] == "32 images"
    ran = run("export", bundle, "--precisions", "int8", "--batch-size-fixed", 3)  # on synthetic inputs, made anew
    assert ran.code == 0, ran.err
    assert {path.name for path in bundle.glob("*.onnx")} == {name for name in FILES if "fp16" not in name}
    assert "synthetic inputs" in read_metadata(bundle / "model.int8.onnx")["calibration"]
    ran = run("verify", bundle, "--images", digits, "--images-limit", 40)
    assert ran.code == 0, ran.err
    records = {(r["network"], r["precision"]): r for r in read_json(bundle / "verify.json")["precisions"]}
    assert records["pruned", "int8"]["count"] == 40
    assert run("export", bundle).code == 0
    assert {path.name for path in bundle.glob("*.onnx")} == {"dense.onnx", "model.onnx"}


@pytest.mark.slow
@pytest.mark.slow
def test_embedded_files_have_all_precisions(run: Any, bundle: Path, digits: Path) -> None:
    asked = ("--precisions", "fp32", "fp16", "int8", "--calibration", digits, "--calibration-images", 32)
    ran = run("export", bundle, *asked, "--embed-preprocessing", "uint8-nhwc", "--dynamic", "batch,height,width")
    assert ran.code == 0, ran.err
    ran = run("verify", bundle, "--parity-batches", 2, "--images", digits, "--images-limit", 90)
    assert ran.code == 0, ran.err
    records = {(r["network"], r["precision"]): r for r in read_json(bundle / "verify.json")["precisions"]}
    for (network, _), record in records.items():
        assert record["top1"] == pytest.approx(records[network, "fp32"]["top1"], abs=0.05), record


@pytest.mark.slow
def test_another_normalisation_than_the_embedded_one_is_refused(run: Any, bundle: Path, digits: Path) -> None:
    asked = ("--precisions", "int8", "--calibration", digits, "--embed-preprocessing", "uint8-nhwc")
    ran = run("export", bundle, *asked, "--mean", 0.4)
    assert ran.code == 2
    assert "--mean and --std are (0.4,) and (0.5,)" in one_line(ran.err)


@pytest.mark.slow
def test_the_hub_has_them_all(run: Any, precise: Path, hub: Any) -> None:
    ran = run("push", precise, "me/digits")
    assert ran.code == 0, ran.err
    fetched = open_any_bundle("hf-hub:me/digits")
    assert fetched.precisions == ("fp32", "fp16", "int8")
    for name in FILES:
        assert fetched.path(name).read_bytes() == (precise / name).read_bytes()


@pytest.mark.slow
def test_a_file_with_other_weights_fails(run: Any, precise: Path, rehash: Any) -> None:
    path = precise / "model.int8.onnx"
    model = onnx.load(path)
    weight = next(entry for entry in model.graph.initializer if entry.name == "stem.0.weight_quantized")
    weight.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weight), weight.name))
    onnx.save(model, path)
    rehash(precise)
    ran = run("verify", precise, "--parity-batches", 1)
    assert ran.code == 1
    said = "int8 weights: model.int8.onnx: 9 weights are those of model.onnx to half a step of int8; others are stem.0"
    assert said in one_line(ran.err)
    assert not read_json(precise / "verify.json")["ok"]


@pytest.mark.slow
def test_what_cannot_be_is_refused_before_any_work(run: Any, bundle: Path, precise: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for arguments, said in (
        (("ship", *DIGITS, "--precisions", "int8", "--provider", "cuda", "--out", out), "no int8 kernels"),
        (("export", bundle, "--precisions", "int8", "--provider", "cuda"), "--provider is cuda"),
        (("export", bundle, "--precisions", "int8", "int8"), "--precisions has int8 twice"),
        (("export", bundle, "--calibration", tmp_path), "--calibration is for int8"),
        (("bench", bundle, "--precision", "fp16"), "--precision is fp16, and"),
        (("bench", precise, "--precision", "int8", "--provider", "cuda"), "no int8 kernels"),
        (("bench", precise, "--precision", "int8", "--provider", "tensorrt"), "are for the provider cpu"),
    ):
        ran = run(*arguments)
        assert (ran.code, said in one_line(ran.err)) == (2, True), (arguments, ran.err)
    assert not out.exists()


def test_int8_needs_inputs_or_batchnorms(run: Any, tmp_path: Path) -> None:
    factory = tmp_path / "users_plain.py"
    factory.write_text(
        "from torch import nn\n"
        "def build():\n"
        "    maps = [nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3)]\n"
        "    return nn.Sequential(*maps, nn.Flatten(), nn.Linear(128, 4))\n"
    )
    given = ("--input-shape", 1, 8, 8, "--flops", 0.6, "--recover", "none", "--out", tmp_path / "out")
    weightwise = ("--criterion", "l1", "--ranking", "uniform")
    ran = run("ship", f"{factory}:build", *given, *weightwise, "--precisions", "int8")
    assert (ran.code, (tmp_path / "out").exists()) == (2, False)
    assert "--precisions has int8, whose ranges are measured on calibration inputs" in one_line(ran.err)
    assert "no BatchNorm statistics" in one_line(ran.err)


@pytest.mark.slow
def test_in_python_the_tensors_of_prune_calibrate_and_those_held_out_compare(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 4))
    ).eval()
    inputs = [torch.randn(32, 1, 8, 8) for _ in range(3)]
    pruned = pruneport.prune(network, macs=0.5, input_shape=(1, 8, 8), calibration=inputs)
    deployed = pruned.export(tmp_path / "b", precisions=["int8"]).verify(parity_batches=[2])
    deployed = deployed.bench(provider="cpu", batches=[1], repeats=2, warmup=1, precision="int8")
    assert set(deployed.files) == {name for name in FILES if "fp16" not in name}
    assert deployed.verification is not None
    assert {(record.inputs, record.count) for record in deployed.verification.precisions} == {("held-out", 16)}
    assert deployed.measured is not None
    assert [times.precision for times in deployed.measured.batches[0].precisions] == ["int8"]
    given = pruned.export(tmp_path / "c", precisions=["int8"], calibration=inputs[:1])
    assert read_metadata(given.folder / "model.int8.onnx")["calibration"] == "16 images"  # as many are held out
    with pytest.raises(InputError, match="`calibration` is for int8"):
        pruned.export(tmp_path / "d", calibration=inputs)
    assert not (tmp_path / "d").exists()


UNEVEN = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    first, second, head = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 8, 3), nn.Linear(128, 10)
    with torch.no_grad():
        first.weight[0] *= 2000
        first.bias[0] = 2000
        second.weight[:, 0] /= 2000
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), head)
"""
"""One channel is so much larger than the others that int8 has no steps for these."""


@pytest.mark.slow
def test_ship_leaves_layers_in_float_where_int8_loses_more_than_max_drop(
    digits: Path, tmp_path: Path, run: Any
) -> None:
    (tmp_path / "uneven.py").write_text(UNEVEN)
    (tmp_path / "unlabelled").mkdir()
    for number, path in enumerate(sorted(digits.rglob("*.png"))[::7]):
        shutil.copy(path, tmp_path / "unlabelled" / f"{number}.png")
    source = ("ship", f"{tmp_path / 'uneven.py'}:make", "--input-shape", 1, 8, 8, "--flops", 0.9, "--recover", "none")
    how = ("--criterion", "l1", "--ranking", "uniform", "--round-to", 1, "--parity-batches", 1, "--batches", 1)
    inputs = ("--calibration", tmp_path / "unlabelled", "--images", digits, "--images-limit", 100)
    asked = ("--precisions", "int8", "--max-drop", 8, "--repeats", 2, "--no-dry-export", "--out", tmp_path / "out")
    ran = run(*source, *how, *inputs, *asked)
    assert ran.code in (0, 1), ran.err  # its weights are random: what pruning costs is luck
    records = {(r["network"], r["precision"]): r for r in read_json(tmp_path / "out/verify.json")["precisions"]}
    for name in ("dense", "pruned"):
        assert set(records[name, "int8"]["float_layers"]) >= {"0", "2"}, records[name, "int8"]
        assert "of 8 allowed" in records[name, "int8"]["float_reason"]
        assert records[name, "int8"]["agreement"] > 0.85
        assert records[name, "fp32"]["float_layers"] == []
    for text in (ran.out, (tmp_path / "out/README.md").read_text(), (tmp_path / "out/report.html").read_text()):
        assert "layers in float" in text


@pytest.mark.slow
def test_layers_stay_in_float_by_their_names(run: Any, bundle: Path, digits: Path) -> None:
    asked = ("--precisions", "int8", "--calibration", digits, "--calibration-images", 32)
    ran = run("export", bundle, *asked, "--float-layers", "blocks.0", "stem*")
    assert ran.code == 0, ran.err
    names = json.loads(read_metadata(bundle / "model.int8.onnx")["float_layers"])
    assert {name.split(".")[0] for name in names} == {"blocks", "stem"}
    assert all(name.startswith(("blocks.0", "stem")) for name in names)
    assert "They were named in" in read_metadata(bundle / "dense.int8.onnx")["float_reason"]
    for wrong, said in (
        ((*asked, "--float-layers", "nothing*"), "--float-layers nothing* matches no module of the network"),
        (("--float-layers", "stem*"), "--float-layers is for int8: add int8 to --precisions"),
    ):
        ran = run("export", bundle, *wrong)
        assert (ran.code, said in one_line(ran.err)) == (2, True), ran.err
