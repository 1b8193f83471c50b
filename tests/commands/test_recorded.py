"""What was checked is written down, and what must be known before use is said everywhere alike."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pruneport.bench.devices import cpu_in_use_by_others
from pruneport.export.bundle.bundle import check_hashes, open_bundle
from pruneport.models.digits.tasks import write_digits_task
from pruneport.models.digits.train import write_images
from tests.support.command_line import QUICK, read_json

_PIXELS = ("--mean", "0.5", "--std", "0.5")
_PLAIN = ("--criterion", "l1", "--ranking", "uniform", "--recover", "none")
_DIGITS = ("pruneport:digits_resnet", "--weights", "DEFAULT")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


def _pages(folder: Path) -> list[str]:
    """Model card and report as one line of text each."""
    pages = (folder / "README.md", folder / "report.html")
    return [" ".join(page.read_text(encoding="utf-8").replace("\\", "").split()) for page in pages if page.exists()]


def _in_full(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.slow
def test_after_training_the_report_says_what_was_checked(run: Any, bundle: Path, tmp_path: Path) -> None:
    task, out = tmp_path / "parity", tmp_path / "trained"
    write_digits_task("parity", task)
    train = ("--steps", 60, "--augment", "crop", "--optimizer", "sgd", *_PIXELS)
    assert run("finetune", bundle, "--task", task, *train, "--out", out).code == 0
    assert run("export", out).code == 0
    assert run("verify", out, "--images", task / "test", *_PIXELS).code == 0
    assert run("bench", out, *QUICK).code == 0
    top1 = read_json(out / "verify.json")["accuracy"]["pruned_onnx"]
    card, report = _pages(out)
    assert "Not checked" not in report
    assert "were not compared" not in card
    assert "Accuracy was not measured" not in report
    for page in (card, report):
        assert f"{100 * top1:.1f} %" in page


def test_verify_renews_card_and_report_and_says_which_command_did(run: Any, bundle: Path, images: Path) -> None:
    assert "Top-1 accuracy" not in "".join(_pages(bundle))
    done = run("verify", bundle, "--images", images, *_PIXELS, "--parity-batches", 2)
    assert done.code == 0
    assert "Verified; verify.json in the bundle." in done.out
    for page in _pages(bundle):
        assert "Top-1 accuracy, pruned in ONNX Runtime" in page
    assert [entry["batch"] for entry in read_json(bundle / "verify.json")["parity"]] == [2, 2, 32]
    assert check_hashes(open_bundle(bundle))
    assert shlex.split(read_json(bundle / "manifest.json")["commands"][-1])[:3] == ["pruneport", "verify", str(bundle)]


@pytest.mark.slow
def test_what_was_counted_on_images_is_not_forgotten(run: Any, bundle: Path, images: Path) -> None:
    assert run("verify", bundle, "--images", images, *_PIXELS, "--parity-batches", 1).code == 0
    counted = read_json(bundle / "verify.json")
    assert run("verify", bundle, "--parity-batches", 3).code == 0
    again = read_json(bundle / "verify.json")
    assert [entry["batch"] for entry in again["parity"]] == [3, 3]
    assert (again["accuracy"], again["agreement"]) == (counted["accuracy"], counted["agreement"])
    assert run("export", bundle).code == 0  # other files, of which nothing is known
    assert run("verify", bundle, "--parity-batches", 3).code == 0
    assert read_json(bundle / "verify.json")["accuracy"] is None


@contextmanager
def _unwritable(folder: Path) -> Iterator[None]:
    """Take the right to write, also from root, who goes on as nobody."""
    for path in (folder, *folder.iterdir()):
        path.chmod(path.stat().st_mode & 0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        for path in (folder, *folder.iterdir()):
            path.chmod(path.stat().st_mode | 0o200)


def test_a_bundle_that_cannot_be_written_is_checked_all_the_same(run: Any, bundle: Path, listing: Any) -> None:
    assert run("verify", bundle, "--parity-batches", 1).code == 0  # imports what nobody could not read
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        folder = Path(shutil.copytree(bundle, Path(place) / "bundle"))
        before = read_json(folder / "manifest.json")
        with _unwritable(folder):
            kept = listing(folder)
            done = run("verify", folder, "--parity-batches", 1, "--json")
            shown = run("verify", folder, "--parity-batches", 1)
            assert listing(folder) == kept
        assert (done.code, shown.code) == (0, 0), done.err
        told = json.loads(done.out)
        assert (told["ok"], told["recorded"]) == (True, False)
        assert f"not recorded in the bundle: {folder} cannot be written" in done.err
        assert "not recorded: the bundle cannot be written" in shown.out
        assert read_json(folder / "manifest.json") == before


@pytest.mark.slow
def test_ruined_accuracy_is_said_in_console_card_and_report(run: Any, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = (*_DIGITS, "--flops", 0.2, *_PLAIN, "--images", images, *_PIXELS, *QUICK, "--parity-batches", 1)
    done = run("ship", *asked, "--out", out)
    assert done.code == 0, done.err
    accuracy = read_json(out / "verify.json")["accuracy"]
    fall = accuracy["dense_torch"] - accuracy["pruned_onnx"]
    assert fall > 0.2
    sentence = f"Accuracy fell by {100 * fall:.1f} points, from {100 * accuracy['dense_torch']:.1f} % to "
    for place in (_in_full(done.out), *_pages(out)):
        assert sentence in place
        assert "training with pruneport finetune" in place
    shipped = json.loads(run("ship", *asked, "--out", out, "--overwrite", "--json").out)
    assert any(warning.startswith("Accuracy fell by") for warning in shipped["warnings"])
    timed = json.loads(run("bench", out, *QUICK, "--json").out)
    assert any(warning.startswith("Accuracy fell by") for warning in timed["warnings"])
    assert _pages(out)[1].index("Accuracy fell by") < _pages(out)[1].index("</header>")


@pytest.mark.slow
def test_without_labels_the_dense_networks_choices_count(run: Any, images: Path, tmp_path: Path) -> None:
    loose, out = tmp_path / "loose", tmp_path / "out"
    loose.mkdir()
    for file in sorted(images.rglob("*.png"))[::4]:
        shutil.copy(file, loose / f"{file.parent.name}-{file.name}")
    assert run("compress", *_DIGITS, "--flops", 0.2, *_PLAIN, "--out", out).code == 0
    assert run("export", out).code == 0
    done = run("verify", out, "--images", loose, *_PIXELS, "--parity-batches", 1)
    assert done.code == 0
    agreement = read_json(out / "verify.json")["agreement"]
    assert agreement["top1"] < 0.9
    sentence = f"On only {100 * agreement['top1']:.1f} % of {agreement['images']} images the pruned network's first"
    assert sentence in _in_full(done.out)
    assert sentence in _pages(out)[0]
    assert f"the dense network's on {agreement['top1']:.2%} of {agreement['images']} images" in _in_full(done.out)


@pytest.mark.slow
def test_outputs_that_are_all_zero_prove_nothing(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "users_vit.py").write_text(
        "from torchvision.models import VisionTransformer\n"
        "def build():  # its head is zero before training\n"
        "    return VisionTransformer(16, 8, 1, 2, 32, 64, num_classes=5)\n"
    )
    asked = ("users_vit.py:build", "--input-shape", 3, 16, 16, "--flops", 0.8, "--criterion", "l1", "--ranking")
    done = run("ship", *asked, "uniform", *QUICK, "--parity-batches", 1, 3, "--out", "out")
    assert done.code == 0, done.err
    for place in (_in_full(done.out), *_pages(tmp_path / "out")):
        assert "proves nothing for the dense and the pruned network" in place


@pytest.mark.slow
def test_a_busy_machine_is_said_in_console_card_and_report(run: Any, bundle: Path) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
    try:
        assert (cpu_in_use_by_others() or 0) > 0.4
        done = run("bench", bundle, *QUICK)
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert done.code == 0
    assert read_json(bundle / "bench.json")["device"]["cpu_in_use_by_others"] > 0.4
    for place in (_in_full(done.out), *_pages(bundle)):
        assert "The machine was busy before the timed rounds: others used" in place
