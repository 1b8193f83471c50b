"""A small network with every kind of arithmetic, as fp32 ONNX, and inputs to calibrate it with."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from pruneport.export.onnx.exporter import export_network


class Small(NamedTuple):
    """A network, its fp32 file and calibration inputs in two batches."""

    network: nn.Module
    path: Path
    inputs: tuple[Tensor, Tensor]


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6), nn.Flatten(), nn.Linear(96, 5))
    ).eval()
    path = tmp_path_factory.mktemp("small") / "model.onnx"
    export_network(network, (2, 8, 8)).save(path, {"plan_sha256": "of the plan"})
    generator = torch.Generator().manual_seed(1)
    return Small(
        network, path, (torch.randn(16, 2, 8, 8, generator=generator), torch.randn(5, 2, 8, 8, generator=generator))
    )
