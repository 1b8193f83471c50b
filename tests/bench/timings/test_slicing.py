"""Slicing the dense ONNX file against exporting the pruned network."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from pruneport.bench.timings.slicing import OnnxSlicer
from pruneport.compress.graph.groups import find_groups
from pruneport.compress.resize.layers import narrow
from pruneport.compress.surgery.apply import positions_kept
from pruneport.export.onnx.onnx_file import write_onnx

SHAPE = (3, 12, 12)


def block(inputs: int, outputs: int, *, groups: int = 1, kernel: int = 3) -> nn.Module:
    """A convolution with its BatchNorm, which the exporter folds, and a ReLU."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class Mixed(nn.Module):
    """A residual stream with a depthwise layer, a concatenation, a grouped layer, a transposed one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 16)
        self.wide = block(16, 48, kernel=1)
        self.depthwise = block(48, 48, groups=48)
        self.narrow = block(48, 16, kernel=1)
        self.left, self.right = block(16, 12), block(16, 20, kernel=1)
        self.joined = block(32, 64, kernel=1)
        self.grouped = block(64, 64, groups=2)
        self.up = nn.Sequential(nn.ConvTranspose2d(64, 24, 2, stride=2), nn.BatchNorm2d(24), nn.ReLU())
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.narrow(self.depthwise(self.wide(x)))
        x = self.joined(torch.cat([self.left(x), self.right(x)], 1))
        return self.head(self.up(self.grouped(x)).mean((2, 3)))


class Tokens(nn.Module):
    """Linear layers, whose weights the exporter transposes, with norms and a scale that it reshapes."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.scale = nn.Parameter(torch.randn(16))
        self.norm = nn.LayerNorm(16)
        self.first, self.second = nn.Linear(16, 40), nn.Linear(40, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x) * self.scale.reshape(1, -1, 1, 1)
        x = x.flatten(2).transpose(1, 2)
        x = x + self.second(nn.functional.gelu(self.first(self.norm(x))))
        return self.head(x.mean(1))


def make(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    network = kind().eval()
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor) / 2)  # no two norms alike
    return network


@pytest.mark.parametrize("kind", [pytest.param(Mixed, marks=pytest.mark.slow), Tokens])
def test_a_sliced_file_says_what_the_exported_network_says(kind: type[nn.Module], tmp_path: Path) -> None:
    network = make(kind)
    images = torch.randn(2, *SHAPE)
    generator = np.random.default_rng(3)
    kept = []
    for group in find_groups(network, images):
        if group.reason or group.role == "output" or (kind is Tokens and group.role == "representation"):
            continue
        run = group.width // group.blocks
        left = np.sort(generator.permutation(run)[: max(1, run // 2)])
        units = [part * run + int(unit) for part in range(group.blocks) for unit in left]
        kept += [(member, units) for member in group.members]
    pruned = copy.deepcopy(network)
    for name, keep in positions_kept(kept).items():
        narrow(pruned, name, keep)
    write_onnx(network, SHAPE, tmp_path / "dense.onnx", {})
    write_onnx(pruned, SHAPE, tmp_path / "exported.onnx", {})

    OnnxSlicer(network, tmp_path / "dense.onnx").write(tmp_path / "sliced.onnx", kept)

    outputs = {}
    for name in ("dense", "exported", "sliced"):
        session = ort.InferenceSession(str(tmp_path / f"{name}.onnx"), providers=["CPUExecutionProvider"])
        outputs[name] = session.run(None, {"input": images.numpy()})[0]
    assert np.allclose(outputs["sliced"], outputs["exported"], rtol=1e-4, atol=1e-5)
    assert not np.allclose(outputs["dense"], outputs["exported"], rtol=1e-2)
    assert (tmp_path / "sliced.onnx").stat().st_size < 0.8 * (tmp_path / "dense.onnx").stat().st_size
