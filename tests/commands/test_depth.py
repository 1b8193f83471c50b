"""`--depth auto` on the command line: a bundle without the branches, whole and verified; and timed towards a target."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

import pruneport
from pruneport.bench.timings.table import read_table
from pruneport.compress.surgery.dropping import Absent
from small_networks import randomise_norms


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


def test_inspect_names_the_branches(run: Callable[..., Any]) -> None:
    shown = run("inspect", "pruneport:digits_resnet")
    assert "Residual branches that --depth auto may drop" in shown.out
    groups = json.loads(run("inspect", "pruneport:digits_resnet", "--json").out)["groups"]
    assert {group["branch"] for group in groups} > {None}


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
