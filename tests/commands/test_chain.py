"""The verbs, one by one and all in one, on the embedded network."""

from __future__ import annotations

import json
import pickletools
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from PIL import Image
from safetensors.torch import load_file

import pruneport
from pruneport.commands import ShipConfig, VerifyConfig, ship, verify
from pruneport.errors import ParityError, SpeedupError, TargetError
from pruneport.export.bundle.bundle import check_hashes, open_bundle
from pruneport.export.onnx.onnx_file import read_metadata
from pruneport.models.digits.tasks import write_digits_task
from pruneport.models.digits.train import write_images
from tests.support.command_line import DIGITS, read_json
from tests.support.slow_values import each_quick

QUICK = ("--repeats", "3", "--warmup", "1", "--batches", "1")
FILES = {
    "README.md",
    "bench.json",
    "dense.onnx",
    "manifest.json",
    "model.onnx",
    "plan.json",
    "preprocessor.json",
    "report.html",
    "verify.json",
    "weights.safetensors",
}


def _lasting(plan: Any) -> Any:
    return {key: value for key, value in plan.items() if key != "created"}


def _weaken(path: Path) -> None:
    model = onnx.load(path)
    weight = max(model.graph.initializer, key=lambda entry: np.prod(entry.dims))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(0.9), weight.name))
    onnx.save(model, path)


def test_a_shipped_bundle_is_whole(shipped: Path) -> None:
    assert {path.name for path in shipped.iterdir()} == FILES
    assert check_hashes(open_bundle(shipped)) == f"{len(FILES) - 1} files match the manifest"
    assert [path.name for path in shipped.parent.iterdir()] == ["bundle"]
    plan, verified, bench = (read_json(shipped / name) for name in ("plan.json", "verify.json", "bench.json"))
    assert abs(plan["pruned"]["macs"] / plan["dense"]["macs"] - 0.5) <= 0.01
    assert verified["ok"]
    assert [check["name"] for check in verified["checks"]] == ["reload", "onnx.checker", "onnx.checker"]
    assert [(entry["network"], entry["batch"]) for entry in verified["parity"]] == [
        ("dense", 1), ("dense", 3), ("pruned", 1), ("pruned", 3)
    ]  # fmt: skip
    assert bench["batches"][0]["speedup"]["ratio"] > 0
    for page in ("README.md", "report.html"):
        text = (shipped / page).read_text(encoding="utf-8").replace("\\", "")
        assert "pruneport:digits_resnet" in text
        assert "Latency" in text


def test_preprocessing_and_class_names_travel(shipped: Path) -> None:
    source = read_json(shipped / "plan.json")["source"]
    assert (source["preprocessing"]["mean"], source["class_names"]) == ([0.5], list("0123456789"))
    said = read_json(shipped / "preprocessor.json")
    assert said.pop("id2label")["9"] == "9"
    for name in ("dense.onnx", "model.onnx"):
        metadata = read_metadata(shipped / name)
        assert json.loads(metadata["preprocessing"]) == said
        assert json.loads(metadata["class_names"]) == source["class_names"]
    card = (shipped / "README.md").read_text(encoding="utf-8").replace("\\", "")
    assert "Preprocessing: shorter side to 8 pixels (bilinear), centre crop of 8 x 8" in card
    assert "Classes: 10, from 0 to 9" in card


@pytest.mark.slow
@pytest.mark.wheel
def test_verify_says_where_images_are_prepared_otherwise_than_the_plan_says(
    bundle: Path, run: Any, tmp_path: Path
) -> None:
    write_digits_task("parity", tmp_path)
    images = ("--images", tmp_path / "test" / "even", "--images-limit", 4, "--parity-batches", 1)
    said = "images are prepared otherwise than the plan says: --resize 12 in place of 8, --mean 0.25 in place of 0.5"
    done = run("verify", bundle, *images, "--resize", 12, "--mean", 0.25, "--std", 0.5)
    assert done.code == 0, done.err
    assert said in " ".join(done.err.split())
    assert said in " ".join(done.out.split())
    (check,) = [entry for entry in read_json(bundle / "verify.json")["checks"] if entry["name"] == "preparation"]
    assert (check["ok"], "`resize` 12 in place of 8" in check["detail"]) == (True, True)
    for same in ((), ("--resize", 8, "--mean", 0.5)):
        done = run("verify", bundle, *images, *same)
        assert done.code == 0, done.err
        assert "otherwise" not in done.out + done.err


def test_the_manifest_records_who_made_it(shipped: Path) -> None:
    manifest = read_json(shipped / "manifest.json")
    command = shlex.split(manifest["commands"][-1])
    assert command[:5] == ["pruneport", "ship", "pruneport:digits_resnet", "--weights", "DEFAULT"]
    assert command[-2:] == ["--out", str(shipped)]
    assert manifest["versions"]["pruneport"] == pruneport.__version__
    assert set(manifest["machine"]) == {"system", "processor"}


def test_the_onnx_files_say_what_they_are(shipped: Path) -> None:
    plan = read_json(shipped / "plan.json")
    for name, network in (("dense.onnx", "dense"), ("model.onnx", "pruned")):
        told = read_metadata(shipped / name)
        assert told["source"] == "pruneport:digits_resnet"
        assert told["plan_sha256"] == read_json(shipped / "manifest.json")["files"]["plan.json"]["sha256"]
        assert (told["macs"], told["params"]) == tuple(str(plan[network][key]) for key in ("macs", "params"))
        assert (told["pruneport"], told["torch"]) == (pruneport.__version__, str(torch.__version__))


def test_no_file_is_a_pickle(shipped: Path) -> None:
    def is_pickle(path: Path) -> bool:
        try:
            return any(code.name == "STOP" for code, _, _ in pickletools.genops(path.read_bytes()))
        except ValueError:
            return False

    assert [path.name for path in shipped.iterdir() if is_pickle(path)] == []


def test_step_by_step_gives_what_ship_gives(shipped: Path, run: Any, tmp_path: Path) -> None:
    folder = tmp_path / "steps"
    done = run("compress", *DIGITS, "--out", folder)
    assert (done.code, {path.name for path in folder.iterdir()}) == (
        0,
        {"plan.json", "weights.safetensors", "preprocessor.json", "manifest.json", "README.md"},
    )
    assert f"Next: pruneport export {folder}" in done.out
    assert "were not compared" in (folder / "README.md").read_text()
    assert run("export", folder).code == 0
    verified = run("verify", folder, "--parity-batches", 1, 3, "--json")
    assert verified.code == 0
    told = json.loads(verified.out)
    assert told["ok"]
    assert told["recorded"]
    assert "were not compared" not in (folder / "README.md").read_text()
    assert not (folder / "report.html").exists()  # there is nothing to report before the timing
    assert run("bench", folder, *QUICK).code == 0
    assert {path.name for path in folder.iterdir()} == FILES
    assert read_json(folder / "verify.json")["parity"] == told["parity"]
    assert check_hashes(open_bundle(folder))
    assert shlex.split(read_json(folder / "manifest.json")["commands"][-1]) == [
        "pruneport",
        "bench",
        str(folder),
        *QUICK,
    ]
    assert _lasting(read_json(folder / "plan.json")) == _lasting(read_json(shipped / "plan.json"))
    ours, theirs = (load_file(path / "weights.safetensors") for path in (folder, shipped))
    assert list(ours) == list(theirs)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.slow
def test_exporting_anew_drops_what_was_seen_on_the_old_files(bundle: Path, run: Any) -> None:
    done = run("export", bundle)
    assert done.code == 0
    assert "verify.json, bench.json, report.html: of the ONNX files that are there now" in done.err
    assert {path.name for path in bundle.iterdir()} == FILES - {"verify.json", "bench.json", "report.html"}
    assert check_hashes(open_bundle(bundle)) == "6 files match the manifest"
    card = (bundle / "README.md").read_text()
    assert "were not compared" in card
    assert "Latency was not measured" in card
    assert run("bench", bundle, *QUICK).code == 0
    assert "Not checked." in (bundle / "report.html").read_text()
    assert "were not compared" in (bundle / "README.md").read_text()


def test_bench_keeps_what_was_verified(bundle: Path, run: Any) -> None:
    assert run("bench", bundle, *QUICK).code == 0
    assert "were not compared" not in (bundle / "README.md").read_text()
    measured = read_json(bundle / "bench.json")
    speedup = measured["batches"][0]["dense"]["p50_ms"]
    assert (f"{speedup:.2f} ms" if speedup >= 1 else f"{speedup:.3f} ms") in (bundle / "report.html").read_text()
    assert check_hashes(open_bundle(bundle))


@pytest.mark.parametrize("verb", each_quick(["inspect", "compress", "export", "verify", "bench"], 5, pytest.mark.wheel))
def test_json_is_alone_on_standard_output(verb: str, bundle: Path, run: Any, tmp_path: Path) -> None:
    arguments = {
        "inspect": DIGITS[:3],
        "compress": (*DIGITS, "--out", tmp_path / "new"),
        "verify": (bundle, "--parity-batches", "1"),
        "bench": (bundle, *QUICK),
    }.get(verb, (bundle,))
    done = run(verb, *arguments, "--json")
    assert done.code == 0
    content = json.loads(done.out, parse_constant=pytest.fail)
    key = {"inspect": "groups", "compress": "macs", "export": "files", "verify": "parity", "bench": "batches"}[verb]
    assert content[key]


def test_inspect_shows_every_group(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    done = run("inspect", *DIGITS[:1], "--scope", "filters", "--keep", "blocks.0.conv1")
    assert done.code == 0
    for text in (
        "blocks.1.conv1",
        "kept by --keep blocks.0.conv1",
        "the representation (the output layer's input)",
        "the network's outputs always",
    ):
        assert text in done.out
    assert "a residual stream, outside --scope filters" in run("inspect", *DIGITS[:1], "--scope", "filters").out
    assert "pruneport:digits_resnet: 6 groups, 3.32 M MACs" in done.out


def test_verify_fails_where_the_onnx_file_is_another(bundle: Path, run: Any, rehash: Any, listing: Any) -> None:
    _weaken(bundle / "model.onnx")
    rehash(bundle)
    done = run("verify", bundle, "--parity-batches", "1", "3", "--json")
    assert (done.code, done.out) == (1, "")
    assert "check failed: ONNX Runtime and torch disagree:" in done.err
    assert "pruned fp32 on seeded inputs, batch 3: max error" in done.err
    assert "dense fp32" not in done.err
    assert listing(bundle.parent).keys() == {"bundle", *(f"bundle/{name}" for name in FILES)}
    assert check_hashes(open_bundle(bundle))
    assert read_json(bundle / "verify.json")["ok"] is False
    assert "Verification failed" in (bundle / "README.md").read_text()
    assert "Verification failed" in (bundle / "report.html").read_text()
    with pytest.raises(ParityError):
        verify(VerifyConfig(folder=bundle))


def test_an_onnx_file_of_another_plan_is_refused(bundle: Path, run: Any, rehash: Any) -> None:
    (bundle / "plan.json").write_text((bundle / "plan.json").read_text() + "\n")
    rehash(bundle)
    done = run("verify", bundle)
    assert done.code == 2
    assert "was exported for another plan" in done.err


@pytest.mark.parametrize("verb", ["bench", pytest.param("ship", marks=[pytest.mark.slow, pytest.mark.wheel])])
def test_a_speedup_that_was_not_reached_fails(verb: str, bundle: Path, run: Any, tmp_path: Path) -> None:
    arguments = (bundle,) if verb == "bench" else (*DIGITS, "--out", tmp_path / "new", "--parity-batches", "1")
    done = run(verb, *arguments, *QUICK, "--require-speedup", "100")
    assert (done.code, done.out) == (1, "")
    assert "check failed: A speed-up of at least 100x on cpu was required and not measured at batch 1" in done.err
    evidence = bundle if verb == "bench" else tmp_path / "new"
    assert (evidence / "report.html").is_file()
    assert check_hashes(open_bundle(evidence))


@pytest.mark.slow
def test_ship_from_python(tmp_path: Path) -> None:
    said: list[str] = []
    config = ShipConfig(
        source="pruneport:digits_resnet",
        weights="DEFAULT",
        ratio=0.3,
        out=tmp_path / "bundle",
        parity_batches=(2,),
        batches=(1,),
        repeats=2,
        warmup=1,
    )
    result = ship(config, said.append)
    assert result.verification.ok
    assert result.report.is_file()
    assert "removing filters" in said
    assert read_json(tmp_path / "bundle/manifest.json")["commands"] == [""]
    json.dumps(result.to_dict())
    with pytest.raises(TargetError, match="exactly one"):
        ship(ShipConfig(source="pruneport:digits_resnet", out=tmp_path / "other"))
    assert issubclass(SpeedupError, pruneport.PruneportError)


@pytest.mark.slow
def test_calibration_images_win_accuracy_back(tmp_path: Path, run: Any) -> None:
    test = write_images(tmp_path / "test")
    train = write_images(tmp_path / "train", trained_on=True)
    given = ("--calibration", train, "--mean", "0.5", "--std", "0.5")
    top1 = {}
    for name, extra in {
        "plain": ("--recover", "none"),
        "bn": ("--recover", "bn", *given),
        "best": (*given, "--criterion", "block-hessian", "--ranking", "sensitivity"),
    }.items():
        assert run("compress", *DIGITS[:5], *extra, "--out", tmp_path / name).code == 0
        top1[name] = _top1(tmp_path / name, test)
        if name == "plain":
            plan = read_json(tmp_path / name / "plan.json")
            assert plan["recovery"] is plan["calibration"] is None
        else:
            _check_recovery(tmp_path / name, "bn" if name == "bn" else "reconstruct", "images", (256, 26))
    for name, extra, told in (
        ("data-free", ("--mean", "0.5", "--std", "0.5"), ("data-free", "synthetic", (1024, 26))),
        ("auto", given, ("reconstruct", "images", (256, 26))),
    ):
        out = tmp_path / name
        asked = ("ship", *DIGITS[:5], "--images", test, "--parity-batches", "1", *QUICK, "--out", out, *extra)
        assert run(*asked).code == 0
        accuracy = read_json(out / "verify.json")["accuracy"]
        assert accuracy["pruned_onnx"] == accuracy["pruned_torch"] == pytest.approx(_top1(out, test))
        top1[name] = accuracy["pruned_onnx"]
        _check_recovery(out, *told)
        page, (count, heldout) = (out / "report.html").read_text(encoding="utf-8"), told[2]
        assert f"On {heldout} held-out inputs" in page
        assert f"{count} unlabelled inputs" in page
        assert f"{count} {'synthetic inputs that match' if name == 'data-free' else 'images'}" in page
        assert run("verify", out).code == 0
    # One of 450 images is the whole of what is left to win: the errors tell the recoveries apart.
    assert min(top1["best"], top1["auto"]) >= top1["bn"] > top1["plain"]
    bn, auto = (read_json(tmp_path / name / "plan.json")["recovery"] for name in ("bn", "auto"))
    assert auto["heldout_error_after"] < 0.5 * bn["heldout_error_after"]
    assert top1["data-free"] > top1["plain"]
    assert top1["auto"] > 0.9


def _top1(bundle: Path, images: Path) -> float:
    """Counted apart from pruneport: pixels scaled by hand, classes by their folders."""
    files = sorted(images.rglob("*.png"))
    pixels = np.stack([np.asarray(Image.open(file), dtype=np.float32)[None] / 255 for file in files])
    with torch.inference_mode():
        found = pruneport.load(bundle)(torch.from_numpy(pixels) * 2 - 1).argmax(1).tolist()
    return float(np.mean([choice == int(file.parent.name) for choice, file in zip(found, files, strict=True)]))


def _check_recovery(bundle: Path, name: str, inputs: str, counts: tuple[int, int]) -> None:
    plan = read_json(bundle / "plan.json")
    recovery, given = plan["recovery"], plan["calibration"]
    assert (recovery["name"], recovery["images"], given["count"], given["inputs"]) == (name, *counts[:1] * 2, inputs)
    assert recovery["error_after"] < recovery["error_before"]
    assert recovery["heldout"] == counts[1]
    assert recovery["heldout_error_after"] < recovery["heldout_error_before"]
    assert recovery["heldout_agreement"] > recovery["heldout_agreement_before"]


@pytest.mark.slow
@pytest.mark.wheel
def test_inspect_measures_and_draws_sensitivity(tmp_path: Path, run: Any) -> None:
    train = write_images(tmp_path / "train", trained_on=True)
    plot = tmp_path / "curves.svg"
    asked = ("inspect", *DIGITS[:3], "--sensitivity", "--plot", plot, "--round-to", "1", "--scope", "filters")
    given = (*asked, "--calibration", train, "--mean", "0.5", "--std", "0.5", "--calibration-images", "64")
    ran = run(*given, "--json")
    assert ran.code == 0
    groups = {group["name"]: group for group in json.loads(ran.out)["groups"]}
    for name, group in groups.items():
        curve = group["sensitivity"]
        assert (curve is not None) == group["prunable"]
        if curve is not None:
            assert curve["widths"][0] == group["width"]
            assert curve["output_error"][0] == 0 < curve["output_error"][-1]
            assert name in plot.read_text(encoding="utf-8")
    assert {path.name for path in tmp_path.iterdir()} == {"train", "curves.svg"}
    shown = run(*given).out
    assert "Error at half: mean squared change of the outputs" in shown
    assert str(plot) in shown.replace("\n", "")
    assert run(*asked, "--calibration-images", "8").code == 0  # on synthetic inputs
