"""`--depth auto` on the command line: a bundle without the branches, whole and verified, and all that is made of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

import pruneport
from pruneport.bench.timings.table import read_table
from pruneport.cli import main
from pruneport.compress.surgery.dropping import Absent
from pruneport.compress.surgery.plan import Plan
from pruneport.export.bundle.bundle import open_bundle
from pruneport.models.digits.tasks import write_digits_task
from small_networks import randomise_norms

DIGITS = ("pruneport:digits_resnet", "--weights", "DEFAULT")
ALONE = ("--depth", "auto", "--max-pruning-ratio", "0.001")
"""Branches go, and no width changes."""
PIXELS = ("--mean", "0.5", "--std", "0.5")
TRAINING = (*PIXELS, "--augment", "crop", "--optimizer", "sgd")
TIMING = ("--repeats", "3", "--warmup", "1", "--batches", "1", "--parity-batches", "1", "--threads", "1")


@pytest.fixture(scope="module")
def shallow(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the digits network without its last branch."""
    folder = tmp_path_factory.mktemp("shallow") / "bundle"
    inputs = ("--calibration", str(digits), "--calibration-images", "64", *PIXELS)
    assert main(["compress", *DIGITS, *inputs, *ALONE, "--flops", "0.75", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parity")
    write_digits_task("parity", folder)
    return folder


def _plan(folder: Path) -> Plan:
    return open_bundle(folder).plan


def _dropped(folder: Path) -> list[str]:
    return [branch.name for branch in _plan(folder).branches]


def _absent(network: nn.Module) -> set[str]:
    return {name for name, module in network.named_modules() if isinstance(module, Absent)}


@pytest.mark.slow
def test_ship_drops_branches_and_the_bundle_verifies(run: Callable[..., Any], digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    alone = ("--depth", "auto", "--max-pruning-ratio", "0.001", "--flops", "0.75", "--recover", "reconstruct")
    timing = ("--repeats", "3", "--warmup", "1", "--batches", "1")
    source = ("pruneport:digits_resnet", "--weights", "DEFAULT", "--calibration", digits)
    shipped = run("ship", *source, *alone, *timing, "--out", out)
    assert shipped.code == 0, shipped.err
    plan = json.loads((out / "plan.json").read_text())
    names = [branch["name"] for branch in plan["branches"]]
    assert names
    assert plan["request"]["depth"] == "auto"
    assert all(name in shipped.out for name in names)
    for file in ("report.html", "README.md"):
        assert "Dropped residual branches" in (out / file).read_text()
    network = pruneport.load(out)
    assert any(isinstance(module, Absent) for module in network.modules())
    convolutions = {
        file: sum(node.op_type == "Conv" for node in onnx.load(out / file).graph.node)
        for file in ("dense.onnx", "model.onnx")
    }
    gone = sum(len([name for name in branch["modules"] if "conv" in name]) for branch in plan["branches"])
    assert convolutions["model.onnx"] == convolutions["dense.onnx"] - gone
    assert run("verify", out).code == 0


@pytest.mark.slow
@pytest.mark.parametrize("how", [(), ("--recover", "none"), ("--recover", "none", "--criterion", "l1")])
def test_it_is_measured_where_there_are_no_images(
    how: tuple[str, ...], run: Callable[..., Any], tmp_path: Path
) -> None:
    asked = (*ALONE, "--flops", "0.75", "--calibration-images", "16")
    done = run("compress", *DIGITS, *asked, *how, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    plan = _plan(tmp_path / "out")
    assert [branch.name for branch in plan.branches] == ["blocks.2"]
    assert (plan.request.ranking, plan.request.depth) == ("sensitivity", "auto")
    assert plan.calibration is not None
    assert plan.calibration.inputs == "synthetic"
    assert plan.recovery is not None
    assert plan.recovery.name == ("none" if how else "data-free")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("compress", "--flops", "0.6", "--ranking", "uniform"), "given: --ranking uniform. Leave one of the two out."),
        (("sweep", "--flops", "0.6", "0.5", "--ranking", "global"), "--depth auto needs --ranking sensitivity"),
        (("ship", "--max-drop", "1", "--ranking", "isomorphic"), "--depth auto needs --ranking sensitivity"),
        (
            ("finetune", "--task", "no", "--schedule", "loss", "--flops", "0.6", "--ranking", "uniform"),
            "--depth auto needs",
        ),
        (("finetune", "--task", "no"), "--depth without --schedule: add --schedule loss to prune while training"),
        (("compress", "--flops", "0.6", "--latency", "0.5"), "given: --flops and --latency."),
        (("compress", "--latency-ms", "-3"), "--latency-ms is -3; expected milliseconds above 0"),
        (
            ("compress", "--flops", "0.6", "--latency-batch", "4"),
            "--latency-batch without a latency as the",
        ),
        (("ship", "--max-drop", "1", "--latency-table", "t.json"), "--latency-table without a latency as the target"),
        (("sweep", "--params", "0.6", "--latency-precision", "int8"), "--latency-precision without a latency as the"),
        (("sweep", "--flops", "0.6", "--max-drop", "1"), "--max-drop needs labelled images: give --images FOLDER"),
        (("compress", "--flops", "0.6", "--criterion", "taylor"), "--criterion taylor needs images"),
    ],
)
def test_what_does_not_go_with_it(words: tuple[str, ...], said: str, run: Callable[..., Any], tmp_path: Path) -> None:
    verb, *others = words
    done = run(verb, *DIGITS, "--depth", "auto", *others, "--out", tmp_path / "out")
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert len(done.err[done.err.index("error: ") :].splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_nothing_can_be_measured_on_is_told_to_keep_its_branches(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 16, 3), Plain(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    with pytest.raises(pruneport.PruneportError, match=r"no BatchNorm .*`recover=none` `depth=never`"):
        pruneport.prune(network, macs=0.5, depth="auto", recover="none", input_shape=(3, 8, 8))
    pruneport.prune(network, macs=0.7, recover="none", input_shape=(3, 8, 8))


@pytest.mark.slow
def test_it_is_fine_tuned_and_taught_by_the_dense_network(
    run: Callable[..., Any], shallow: Path, task: Path, tmp_path: Path
) -> None:
    out = tmp_path / "trained"
    how = ("--steps", "30", "--batch-size", "16", "--evaluations", "1", "--distill", "0.5")
    done = run("finetune", shallow, "--task", task, *how, *TRAINING, "--out", out)
    assert done.code == 0, done.err
    before, after = _plan(shallow), _plan(out)
    assert after.branches == before.branches
    network, first = pruneport.load(out), pruneport.load(shallow)
    assert _absent(network) == _absent(first)
    assert not torch.equal(network.get_parameter("stem.0.weight"), first.get_parameter("stem.0.weight"))
    (event,) = json.loads((out / "training.json").read_text())["events"]
    assert event["error"] < 0.25
    counted = 30 * 16 * (6 * after.pruned.macs + 2 * after.dense.macs)
    assert event["flops"] == pytest.approx(counted, rel=1e-3), "the teacher is dense; its output layer is the old one"


@pytest.mark.slow
def test_a_schedule_drops_branches_while_it_trains(run: Callable[..., Any], task: Path, tmp_path: Path) -> None:
    out = tmp_path / "trained"
    how = ("--steps", "24", "--batch-size", "16", "--evaluations", "8", "--schedule", "loss", "--cuts", "2")
    done = run("finetune", *DIGITS, "--task", task, *how, *TRAINING, *ALONE, "--flops", "0.45", "--out", out)
    assert done.code == 0, done.err
    assert {*_dropped(out)} == {"blocks.0", "blocks.2"}
    macs = [event["macs"] for event in json.loads((out / "training.json").read_text())["events"]]
    assert macs[0] > macs[-1] == _plan(out).pruned.macs, "a cut each"
    request, note = _plan(out).request, _plan(out).note
    assert (request.ranking, request.depth) == ("sensitivity", "auto")
    assert note is not None
    assert (
        "asked for 0.45 of the dense flops, reached 0.2854: widths are multiples of 8, branches go as a whole," in note
    )
    assert {name.rpartition(".")[0] for name in _absent(pruneport.load(out))} >= {"blocks.0", "blocks.2"}


@pytest.mark.slow
def test_it_is_compressed_further(run: Callable[..., Any], shallow: Path, tmp_path: Path) -> None:
    out, plan = tmp_path / "smaller", _plan(shallow)
    done = run("compress", shallow, *ALONE, "--flops", "0.4", "--calibration-images", "16", "--out", out)
    assert done.code == 0, done.err
    assert _dropped(out) == ["blocks.2", "blocks.0"]
    assert [step.pruned for step in _plan(out).earlier] == [plan.pruned]
    network = pruneport.load(shallow)
    narrower = pruneport.prune(network, like=shallow, macs=0.4, criterion="l1", recover="none", ranking="uniform")
    assert narrower.plan.branches == plan.branches
    assert narrower.plan.macs_kept == pytest.approx(0.4, abs=0.02)
    narrower.save(tmp_path / "narrower")
    again, x = pruneport.load(tmp_path / "narrower"), torch.rand(2, 1, 8, 8)
    assert torch.equal(again(x), narrower.network(x))
    assert _absent(again) == _absent(network)


@pytest.mark.slow
def test_it_is_shipped_further_and_verified(run: Callable[..., Any], shallow: Path, tmp_path: Path) -> None:
    out = tmp_path / "smaller"
    done = run("ship", shallow, *ALONE, "--flops", "0.4", "--calibration-images", "16", *TIMING, "--out", out)
    assert done.code == 0, done.err
    assert _dropped(out) == ["blocks.2", "blocks.0"]
    assert run("verify", out).code == 0
    assert "Dropped residual branches" in (out / "report.html").read_text()


@pytest.mark.slow
def test_every_precision_is_without_the_branch(
    run: Callable[..., Any], shallow: Path, digits: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(shallow, tmp_path / "bundle"))
    inputs = ("--calibration", digits, "--calibration-images", "32", *PIXELS)
    done = run("export", folder, "--precisions", "fp32", "fp16", "int8", *inputs)
    assert done.code == 0, done.err
    assert run("verify", folder, "--images", digits, "--images-limit", "60", *PIXELS).code == 0
    verified = json.loads((folder / "verify.json").read_text())
    assert verified["ok"]
    compared = [entry for entry in verified["precisions"] if entry["network"] == "pruned" and not entry["fault"]]
    assert {entry["precision"] for entry in compared} == {"fp32", "fp16", "int8"}
    gone = sum("conv" in name for name in _absent(pruneport.load(folder)))
    for precision in ("", ".fp16", ".int8"):
        files = [onnx.load(folder / f"{name}{precision}.onnx").graph.node for name in ("dense", "model")]
        dense, model = (sum("Conv" in node.op_type for node in nodes) for nodes in files)
        assert dense - model == gone, precision
    assert run("bench", folder, *TIMING[:-4], "--threads", "1").code == 0


@pytest.mark.slow
def test_a_sweep_has_points_with_and_without_branches(
    run: Callable[..., Any], digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pruneport.commands.sweeping.sweep._MOST_TRIES", 1)
    out = tmp_path / "sweep"
    inputs = (
        "--calibration",
        digits,
        "--calibration-images",
        "48",
        "--images",
        digits,
        "--images-limit",
        "60",
        *PIXELS,
    )
    points = ("--flops", "0.9", "0.45", "--max-drop", "10", "--max-pruning-ratio", "0.3", "--depth", "auto")
    done = run("sweep", *DIGITS, *inputs, *points, *TIMING, "--out", out)
    assert done.code == 0, done.err
    record = json.loads((out / "sweep.json").read_text())
    assert any(point["searched"] for point in record["points"])
    dropped = {point["name"]: _dropped(out / point["name"]) for point in record["points"] if point["figures"]}
    assert dropped["flops-0.9"] == []
    assert dropped["flops-0.45"] != []
    assert done.err.count("measuring branch 1 of 2: blocks.0") == 1, "once for all points"
    for point in record["points"]:
        if point["figures"]:
            assert json.loads((out / point["name"] / "verify.json").read_text())["ok"]
    (pick,) = record["picks"]
    assert pick["point"] in dropped


def test_inspect_names_the_branches(run: Callable[..., Any]) -> None:
    shown = run("inspect", "pruneport:digits_resnet")
    assert "Residual branches that --depth auto may drop" in shown.out
    groups = json.loads(run("inspect", "pruneport:digits_resnet", "--json").out)["groups"]
    assert {group["branch"] for group in groups} > {None}


class Plain(nn.Module):
    """A branch without a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 16, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(16, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 16, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


@pytest.mark.slow
def test_a_latency_target_is_met_by_dropping_branches(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        Block(),
        Block(),
        Block(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 5),
    )
    randomise_norms(network)
    pruned = pruneport.prune(
        network.eval(),
        latency=0.7,
        depth="auto",
        max_pruning_ratio=0.001,
        input_shape=(3, 24, 24),
        calibration=[torch.rand(16, 3, 24, 24)],
        criterion="l1",
        ranking="sensitivity",
        recover="none",
        threads=1,
        repeats=10,
        latency_cache=tmp_path,
    )
    assert 1 <= len(pruned.plan.branches) <= 3
    (table,) = tmp_path.rglob("*.json")
    timed = read_table(table)
    assert timed.varied == tuple(f"depth of {number}" for number in (1, 2, 3))
    assert timed.timings[0].share < min(entry.share for entry in timed.timings if all(entry.kept))
    with pytest.raises(pruneport.PruneportError, match="nothing can be pruned"):
        pruneport.prune(
            network, ratio=0.5, depth="auto", max_pruning_ratio=0.001, input_shape=(3, 24, 24), recover="none"
        )
