"""``pruneport sweep``, and ``ship --max-drop``: on the embedded network, with real files and a killed process."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import pruneport
from pruneport.cli import main
from pruneport.commands import SweepConfig, sweep
from pruneport.errors import SweepError
from pruneport.export.bundle.bundle import check_hashes, open_bundle
from pruneport.files import held
from pruneport.models.digits.train import write_images
from tests.support.command_line import read_json
from tests.support.quiet import skip_if_noisy

_DIGITS = ("pruneport:digits_resnet", "--weights", "DEFAULT", "--recover", "none")
_QUICK = ("--repeats", "3", "--warmup", "1", "--batches", "1", "--threads", "1", "--parity-batches", "1")
_LIMITED = ("--images-limit", "60", "--mean", "0.5", "--std", "0.5")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "test")


@pytest.fixture(scope="module")
def swept(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two points, and one out of reach."""
    folder = tmp_path_factory.mktemp("swept") / "sweep"
    points = ("--flops", "0.8", "0.5", "0.02")
    asked = ("sweep", *_DIGITS, *_QUICK, *_LIMITED, "--images", str(images), *points, "--out", str(folder))
    assert main(list(asked)) == 1
    return folder


def _asked(images: Path, out: Path, *points: object) -> tuple[object, ...]:
    return ("sweep", *_DIGITS, *_QUICK, *_LIMITED, "--images", images, "--flops", *points, "--out", out)


def _words(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8").replace("\xa0", " ")


def _content(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.slow
def test_a_sweep_is_a_bundle_a_point_and_one_page(swept: Path) -> None:
    assert {path.name for path in swept.iterdir()} == {"flops-0.8", "flops-0.5", "sweep.json", "report.html"}
    record = read_json(swept / "sweep.json")
    assert [point["name"] for point in record["points"]] == ["flops-0.8", "flops-0.5", "flops-0.02"]
    for point in record["points"][:2]:
        bundle = open_bundle(swept / point["name"])
        assert check_hashes(bundle)
        verified, bench = read_json(bundle.folder / "verify.json"), read_json(bundle.folder / "bench.json")
        assert verified["ok"]
        assert [entry["network"] for entry in verified["parity"]] == ["dense", "pruned", "pruned"]
        figures = point["figures"]
        assert figures["accuracy"] == verified["accuracy"]
        assert figures["pruned"]["macs"] == bundle.plan.pruned.macs
        assert figures["pruned"]["bytes"] == (bundle.folder / "model.onnx").stat().st_size
        assert figures["latencies"][0]["speedup"] == bench["batches"][0]["speedup"]
        assert point["name"] in (swept / "report.html").read_text(encoding="utf-8")
    unreached = record["points"][2]
    assert unreached["figures"] is None
    assert "`flops=0.02` cannot be reached: with these options the lowest is 0.1873" in unreached["error"]


def test_what_was_finished_is_not_done_again(swept: Path, images: Path, run: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(swept, tmp_path / "sweep"))
    before = _content(folder)
    ran = run(*_asked(images, folder, 0.8, 0.5, 0.02), "--json")
    assert ran.code == 1
    assert "check failed: flops-0.02: --flops 0.02 cannot be reached" in ran.err
    assert "exporting" not in ran.err
    told = json.loads(ran.out)
    assert [point["name"] for point in told["points"]] == ["flops-0.8", "flops-0.5", "flops-0.02"]
    after = _content(folder)
    assert {name for name in before if before[name] != after[name]} <= {"sweep.json", "report.html"}
    assert before.keys() == after.keys()


@pytest.mark.slow
def test_a_killed_sweep_goes_on(images: Path, run: Any, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    words = [str(word) for word in _asked(images, folder, 0.8, 0.5)]
    with subprocess.Popen([sys.executable, "-m", "pruneport.cli", *words], stderr=subprocess.PIPE) as process:
        while not (folder / "flops-0.8").exists() and process.poll() is None:
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
    assert not (folder / "flops-0.5").exists()
    first = _content(folder / "flops-0.8")
    ran = run(*words)
    assert ran.code == 0
    assert "flops 0.8" not in ran.err
    assert "flops 0.5: exporting to ONNX" in ran.err
    assert _content(folder / "flops-0.8") == first
    assert {path.name for path in folder.iterdir()} == {"flops-0.8", "flops-0.5", "sweep.json", "report.html"}


@pytest.mark.slow
def test_points_spread_over_ray_are_those_made_here_and_timed_here(
    swept: Path, images: Path, run: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "sweep"
    asked = [*_asked(images, folder, 0.8, 0.5, 0.02), "--executor", "ray", "--memory", "0.5"]
    ran = run(*asked)
    assert ran.code == 1
    assert "flops-0.02 is left out" in ran.err
    assert {path.name for path in folder.iterdir()} == {"flops-0.8", "flops-0.5", "sweep.json", "report.html"}
    here, there = (read_json(place / "sweep.json")["points"] for place in (swept, folder))
    for one, other in zip(here[:2], there[:2], strict=True):
        for figure in ("accuracy", "dense", "pruned"):
            assert one["figures"][figure] == other["figures"][figure]
        ours, theirs = (load_file(place / one["name"] / "weights.safetensors") for place in (swept, folder))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert read_json(folder / other["name"] / "bench.json")["batches"][0]["speedup"]["ratio"] > 0
        assert check_hashes(open_bundle(folder / other["name"]))
    assert here[2]["error"] == there[2]["error"]


@pytest.mark.slow
def test_a_point_that_was_made_and_not_timed_is_timed(swept: Path, images: Path, run: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(swept, tmp_path / "sweep"))
    point = folder / "flops-0.5"
    manifest = read_json(point / "manifest.json")
    for name in ("bench.json", "report.html"):  # as it is where a sweep over Ray is killed before it times
        (point / name).unlink()
        del manifest["files"][name]
    (point / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    ran = run(*_asked(images, folder, 0.8, 0.5, 0.02))
    assert ran.code == 1
    assert "flops-0.5: timing" in ran.err
    assert "exporting" not in ran.err
    assert check_hashes(open_bundle(point))
    figures = {entry["name"]: entry["figures"] for entry in read_json(folder / "sweep.json")["points"]}
    assert figures["flops-0.5"]["latencies"]


def test_a_latency_target_is_not_spread(run: Any, tmp_path: Path) -> None:
    ran = run("sweep", *_DIGITS, "--latency", "0.8", "--executor", "ray", "--out", tmp_path / "sweep")
    assert ran.code == 2
    assert "--executor ray" in ran.err
    assert "side by side" in ran.err
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (("--round-to", "4"), "--round-to was 8, is 4"),
        (("--depth", "auto"), "--depth was never, is auto"),
        (("--seed", "3"), "source seed was 0, is 3"),
        (("--images-limit", "50"), "--images-limit was 60, is 50"),
    ],
)
def test_a_sweep_with_other_options_is_refused(
    changed: tuple[str, ...], words: str, swept: Path, images: Path, run: Any
) -> None:
    before = _content(swept)
    ran = run(*_asked(images, swept, 0.8), *changed)
    assert ran.code == 2
    assert f"holds a sweep with other options: {words}. Only points and limits may change" in ran.err
    assert _content(swept) == before


def test_another_target_is_refused_in_the_same_folder(swept: Path, images: Path, run: Any) -> None:
    ran = run("sweep", *_DIGITS, *_QUICK, *_LIMITED, "--images", images, "--ratio", "0.2", "--out", swept)
    assert (ran.code, "target was flops, is ratio" in ran.err) == (2, True)


@pytest.mark.slow
def test_picks_are_searched_for_between_the_points(
    swept: Path, images: Path, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pruneport.commands.sweeping.sweep._MOST_TRIES", 2)
    folder = Path(shutil.copytree(swept, tmp_path / "sweep"))
    record = read_json(folder / "sweep.json")
    drop = {point["name"]: _drop(point) for point in record["points"] if point["figures"]}
    assert drop["flops-0.8"] < drop["flops-0.5"]
    limit = (drop["flops-0.8"] + drop["flops-0.5"]) / 2
    ran = run(*_asked(images, folder, 0.8, 0.5), "--max-drop", limit)
    assert ran.code == 0  # 0.02 was asked before, and is not now
    record = read_json(folder / "sweep.json")
    searched = [point for point in record["points"] if point["searched"] and point["figures"]]
    assert searched
    for point in searched:
        assert 0.5 < point["value"] < 1
        assert check_hashes(open_bundle(folder / point["name"]))
    (pick,) = record["picks"]
    assert pruneport.load(folder / pick["point"])
    chosen = next(point for point in record["points"] if point["name"] == pick["point"])
    assert _drop(chosen) <= limit
    within = [point for point in record["points"] if point["figures"] and _drop(point) <= limit]
    assert _speedup(chosen) == max(map(_speedup, within))
    assert "within your limit of" in (folder / "report.html").read_text(encoding="utf-8")


def _drop(point: Any) -> float:
    accuracy = point["figures"]["accuracy"]
    return 100 * float(accuracy["dense_torch"] - accuracy["pruned_onnx"])


def _speedup(point: Any) -> float:
    return float(point["figures"]["latencies"][0]["speedup"]["ratio"])


@pytest.mark.slow
def test_sensitivities_are_measured_once(images: Path, tmp_path: Path) -> None:
    said: list[str] = []
    config = SweepConfig(
        source="pruneport:digits_resnet",
        weights="DEFAULT",
        calibration=images,
        calibration_images=48,
        params=(0.8, 0.6),
        repeats=2,
        warmup=1,
        batches=(1,),
        parity_batches=(1,),
        mean=(0.5,),
        std=(0.5,),
        out=tmp_path / "sweep",
    )
    result = sweep(config, said.append)
    result.check()
    assert sum(line.startswith("measuring group 1 of") for line in said) == 1
    assert said.count("exporting dense.onnx") == said.count("comparing dense.onnx with torch") == 1
    assert [point.value for point in result.points] == [0.8, 0.6]
    for point in result.points:
        assert point.figures is not None
        assert point.figures.accuracy is None
        assert abs(point.figures.pruned.params / point.figures.dense.params - point.value) < 0.03
    json.dumps(result.to_dict())


def test_sweep_from_python(swept: Path, images: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(swept, tmp_path / "sweep"))
    result = pruneport.sweep(
        "pruneport:digits_resnet",
        weights="DEFAULT",
        macs=[0.8, 0.5, 0.02],
        out=folder,
        images=images,
        images_limit=60,
        mean=[0.5],
        std=[0.5],
        recover="none",
        repeats=3,
        warmup=1,
        batches=[1],
        threads=1,
        parity_batches=[1],
    )
    assert [point.name for point in result.points] == ["flops-0.8", "flops-0.5", "flops-0.02"]
    assert result.bundle("max_drop") is None
    assert result.report.is_file()
    with pytest.raises(SweepError, match=r"flops-0\.02"):
        result.check()
    with pytest.raises(pruneport.PruneportError, match=r"`macs` has 0\.5 twice"):
        pruneport.sweep("pruneport:digits_resnet", macs=[0.5, 0.5], out=tmp_path / "x")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "points of exactly one of --flops, --params, --ratio, --latency are needed; given: none"),
        (("--flops", "0.5", "--ratio", "0.2"), "given: --flops and --ratio"),
        (("--flops",), "--flops has no value"),
        (("--flops", "0.5", "0.7", "0.5"), "--flops has 0.5 twice; give each point once"),
        (("--flops", "0.5", "1.5"), "--flops is 1.5; expected a share of dense to keep between 0 and 1"),
        (("--flops", "0.5", "50"), "Did you mean 0.5?"),
        (("--flops", "0.5", "--max-drop", "-1"), "--max-drop is -1; expected points of top-1 from 0 to 100"),
        (("--flops", "0.5", "--max-drop", "nan"), "--max-drop is nan; expected points"),
        (("--flops", "0.5", "--max-drop", "1"), "--max-drop needs labelled images: give --images FOLDER"),
        (("--flops", "0.5", "--max-drop", "1", "--images", "flat"), "flat has no class folders"),
        (("--flops", "0.5", "--min-speedup", "1"), "--min-speedup is 1; expected more than 1"),
        (("--flops", "0.5", "--require-speedup", "2"), "--require-speedup is for one network"),
        (("--flops", "0.01", "0.02"), "no point can be reached. --flops 0.01 cannot be reached"),
    ],
)
def test_bad_input_is_named(
    flags: tuple[str, ...], words: str, images: Path, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flat").mkdir()
    shutil.copy(next(images.rglob("*.png")), tmp_path / "flat")
    ran = run("sweep", *_DIGITS, *_QUICK, *flags, "--out", "out")
    assert (ran.code, ran.out) == (2, "")
    assert words in ran.err


def test_a_folder_with_something_else_is_left_alone(run: Any, tmp_path: Path, images: Path, swept: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/precious.txt").write_text("keep me")
    ran = run(*_asked(images, tmp_path / "taken", 0.5))
    assert (ran.code, "is not empty and holds no sweep" in ran.err) == (2, True)
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["precious.txt"]
    ran = run(*_asked(images, swept / "flops-0.8", 0.5))  # a bundle
    assert (ran.code, "is not empty and holds no sweep" in ran.err) == (2, True)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/sweep.json").write_text("{}")
    ran = run(*_asked(images, tmp_path / "broken", 0.5))
    assert (ran.code, "is not what pruneport sweep writes" in ran.err) == (2, True)


def test_one_process_at_a_time_sweeps_into_a_folder(swept: Path, images: Path, run: Any) -> None:
    with held(swept / ".sweep.lock", swept):
        ran = run(*_asked(images, swept, 0.8))
    assert (ran.code, f"is at work on {swept}; try again when it is done" in ran.err) == (2, True)


@pytest.mark.slow
def test_ship_alone_finds_the_fastest_within_a_drop(
    images: Path, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pruneport.commands.sweeping.search._TRIES", 3)
    out = tmp_path / "out"
    asked = ("ship", *_DIGITS, *_QUICK, *_LIMITED, "--images", images, "--out", out)
    ran = run(*asked, "--max-drop", "20", "--json")
    assert ran.code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert check_hashes(open_bundle(out))
    verified = read_json(out / "verify.json")
    accuracy = verified["accuracy"]
    assert 100 * (accuracy["dense_torch"] - accuracy["pruned_onnx"]) <= 20
    assert verified["max_drop"] == 20
    assert "within your limit of 20 points" in _words(out)
    assert json.loads(ran.out)["verify"]["accuracy"] == accuracy
    assert run("verify", out, "--parity-batches", "1").code == 0
    assert "within your limit of 20 points" in _words(out)


@pytest.mark.slow
def test_ship_alone_leaves_nothing_where_no_network_loses_so_little(
    images: Path, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pruneport.commands.sweeping.search._TRIES", 1)  # half of the compute, and no more
    asked = ("ship", *_DIGITS, *_QUICK, *_LIMITED, "--images", images, "--out", tmp_path / "out")
    ran = run(*asked, "--max-drop", "0")
    assert (ran.code, ran.out, list(tmp_path.iterdir())) == (1, "", [])
    assert "No network that loses at most 0 points of top-1 was found. The nearest is flops-0.5: " in ran.err


@pytest.mark.slow
def test_ship_fails_where_more_is_lost_than_allowed(images: Path, run: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = ("ship", *_DIGITS, *_QUICK, *_LIMITED, "--images", images, "--flops", "0.25", "--out", out)
    ran = run(*asked, "--max-drop", "0")
    assert (ran.code, ran.out) == (1, "")
    assert "points of top-1 were lost on 60 images of test, and at most 0 were allowed" in ran.err
    assert "beyond your limit of 0 points" in _words(out)
    assert check_hashes(open_bundle(out))


def test_ship_with_a_drop_needs_labels(run: Any, tmp_path: Path) -> None:
    ran = run("ship", *_DIGITS, *_QUICK, "--max-drop", "1", "--out", tmp_path / "out")
    assert (ran.code, list(tmp_path.iterdir())) == (2, [])
    assert "--max-drop needs labelled images: give --images FOLDER with a folder for each class" in ran.err
    ran = run("ship", *_DIGITS, *_QUICK, "--flops", "0.5", "--max-drop", "-2", "--out", tmp_path / "out")
    assert (ran.code, "--max-drop is -2; expected points" in ran.err) == (2, True)


@pytest.mark.slow
def test_points_of_latency_are_measured(run: Any, tmp_path: Path) -> None:
    """Timings are made once, at the first point; each bundle is timed at the batch size where its target holds."""
    (tmp_path / "chain_of_three.py").write_text(_CHAIN)
    out, cache = tmp_path / "sweep", tmp_path / "cache"
    asked = (
        "sweep",
        f"{tmp_path / 'chain_of_three.py'}:build",
        "--input-shape",
        3,
        24,
        24,
        *_QUICK[2:],
        "--repeats",
        40,
    )
    limits = ("--criterion", "l1", "--ranking", "uniform", "--recover", "none", "--latency-batch", 2)
    done = run(*asked, *limits, "--latency", 0.8, 0.6, "--latency-cache", cache, "--out", out)
    skip_if_noisy(done.code, done.err)
    assert done.code == 0, done.err
    assert len(list(cache.rglob("*.json"))) == 1
    for name in ("latency-0.8", "latency-0.6"):
        reached = read_json(out / name / "plan.json")["latency"]
        assert reached["batch"] == 2
        assert all(entry["measured"] > 0 for entry in reached["rounds"])
        assert [entry["batch"] for entry in read_json(out / name / "bench.json")["batches"]] == [1, 2]
    assert [point["target"] for point in read_json(out / "sweep.json")["points"]] == ["latency", "latency"]


_CHAIN = """
from torch import nn

def build():
    pairs = ((3, 64), (64, 96), (96, 64))
    body = [layer for a, b in pairs for layer in (nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU())]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5))
"""
