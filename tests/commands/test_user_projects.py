"""A user's project whose packages are called like our rooms, through the real console script."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import pruneport

_NET = """
import bench, compress, export
from models.layers import block
from torch import nn

def build(width=16):
    assert (bench.OWNER, compress.OWNER, export.OWNER) == ("user",) * 3
    return nn.Sequential(
        block(1, width), block(width, width), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4)
    )
"""
_LAYERS = """
from torch import nn

def block(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, outputs, 3), nn.ReLU())
"""
_ROOMS = ("models", "export", "compress", "bench")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for room in _ROOMS:
        (tmp_path / "project" / room).mkdir(parents=True)
        (tmp_path / "project" / room / "__init__.py").write_text('OWNER = "user"\n')
    (tmp_path / "project/models/net.py").write_text(_NET)
    (tmp_path / "project/net.py").write_text(_NET)
    (tmp_path / "project/models/layers.py").write_text(_LAYERS)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "project"), *sys.path])
    mine = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in _ROOMS}
    for name in mine:
        del sys.modules[name]
    yield tmp_path / "project"
    for name in [name for name in sys.modules if name.partition(".")[0] in _ROOMS]:
        del sys.modules[name]
    sys.modules.update(mine)


def _pruneport(project: Path, *arguments: str) -> Any:
    script = Path(sys.executable).with_name("pruneport")
    command = [script, *arguments, "--input-shape", "1", "12", "12", "--json"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.wheel
@pytest.mark.parametrize("source", ["net.py:build", "models.net:build"])
def test_a_project_with_rooms_of_the_same_names(source: str, project: Path) -> None:
    asked = ("--model-arg", "width=32", "--flops", "0.5", "--recover", "none", "--out", "out")
    made = _pruneport(project, "compress", source, *asked)
    assert made["macs"]["pruned"] < made["macs"]["dense"]
    groups = json.loads((project / "out/plan.json").read_text(encoding="utf-8"))["groups"]
    assert {"0.2", "1.0"} <= {group["name"] for group in groups if group["kept"] is not None}
    module = importlib.import_module(source.partition(":")[0].removesuffix(".py"))
    assert Path(str(module.__file__)).is_relative_to(project)
    network = pruneport.load(project / "out", factory=module.build)
    assert sum(parameter.numel() for parameter in network.parameters()) == made["params"]["pruned"]
    assert network(torch.zeros(3, 1, 12, 12)).shape == (3, 4)
    with pytest.raises(pruneport.PruneportError, match="building it runs that code"):
        pruneport.load(project / "out")
