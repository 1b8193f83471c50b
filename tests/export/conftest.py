"""One compressed and one exported bundle of the embedded network, and copies of them to damage."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pruneport.compress.options import PruneOptions
from pruneport.compress.prune import Pruned, prune
from pruneport.export.bundle.weights import write_network
from pruneport.export.bundle.writing import new_bundle
from pruneport.export.onnx.onnx_file import write_onnx
from pruneport.models.options import SourceOptions
from pruneport.models.source import open_source


@dataclass(frozen=True)
class Made:
    """A bundle on disk, and the networks it was made from."""

    folder: Path
    dense: nn.Module
    pruned: Pruned


@pytest.fixture(scope="session")
def make_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Made]:
    """Compress a source to half its compute and write it."""

    def make(source: str, round_to: int = 8, **options: Any) -> Made:
        dense, record = open_source(SourceOptions(source=source, **options))
        pruned = prune(dense, record, PruneOptions(flops=0.5, round_to=round_to))
        folder = tmp_path_factory.mktemp("made") / "bundle"
        with new_bundle(folder, False, "pruneport compress") as staging:
            write_network(staging, pruned.network, pruned.plan)
        return Made(folder, dense, pruned)

    return make


@pytest.fixture(scope="session")
def digits(make_bundle: Callable[..., Made]) -> Made:
    return make_bundle("pruneport:digits_resnet", weights="DEFAULT")


@pytest.fixture(scope="session")
def digits_onnx(digits: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    write_onnx(digits.pruned.network, (1, 8, 8), path, {"source": "pruneport:digits_resnet", "macs": "7"})
    return path


@pytest.fixture
def bundle(digits: Made, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(digits.folder, tmp_path / "bundle"))


@pytest.fixture
def same() -> Callable[[nn.Module, nn.Module, tuple[int, ...]], bool]:
    """Whether two networks have the same state and outputs, bit for bit."""

    def compare(one: nn.Module, other: nn.Module, shape: tuple[int, ...]) -> bool:
        ours, theirs = one.state_dict(), other.state_dict()
        states = [torch.equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in ours]
        inputs = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            outputs = torch.equal(one(inputs), other(inputs))
        return list(ours) == list(theirs) and all(states) and outputs

    return compare
