"""Random allocations, and networks whose files cannot be sliced."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pruneport.arrays import FloatArray
from pruneport.bench.latency.timer import DenseTimer
from pruneport.bench.options import RuntimeOptions
from pruneport.bench.timings.calibrate import draw_allocations, rounds_for, time_allocations
from pruneport.bench.timings.slicing import OnnxSlicer
from pruneport.compress.graph.groups import find_groups
from pruneport.compress.resize.layers import narrow
from pruneport.compress.surgery.apply import positions_kept
from pruneport.errors import ModelError
from pruneport.export.onnx.onnx_file import write_onnx
from pruneport.progress import Note

SHAPE = (3, 8, 8)


class Flattened(nn.Module):
    """The exporter writes the width into a reshape."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.patch(x).flatten(2).transpose(1, 2)).mean(1)


def test_allocations_begin_with_the_lowest_and_span_the_range() -> None:
    dense = np.array([64.0, 32.0, 10.0])
    widths = {0: np.arange(8.0, 65.0, 8.0), 1: np.array([16.0, 32.0])}
    drawn = draw_allocations(dense, widths, count=40)
    assert drawn[0].tolist() == [8, 16, 10]
    assert all(kept[index] in choices for kept in drawn for index, choices in widths.items())
    assert {kept[2] for kept in drawn} == {10}
    assert {kept[0] for kept in drawn} == set(widths[0])
    assert [kept.tolist() for kept in draw_allocations(dense, widths, count=40)] == [kept.tolist() for kept in drawn]


@pytest.mark.parametrize(("dense_ms", "repeats", "rounds"), [(0.1, 30, 100), (10, 30, 40), (500, 30, 8), (10, 60, 80)])
def test_fast_networks_are_timed_more_often(dense_ms: float, repeats: int, rounds: int) -> None:
    assert rounds_for(dense_ms, repeats) == rounds


@pytest.mark.slow
def test_what_cannot_be_sliced_is_exported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Flattened().eval()
    groups = find_groups(network, torch.zeros(2, *SHAPE))
    dense = tmp_path / "dense.onnx"
    write_onnx(network, SHAPE, dense, {})
    exported: list[FloatArray] = []

    def export(path: Path, kept: FloatArray) -> None:
        pruned = copy.deepcopy(network)
        units = [(member, range(int(kept[0]))) for member in groups[0].members]
        for name, keep in positions_kept(units).items():
            narrow(pruned, name, keep)
        write_onnx(pruned, SHAPE, path, {})
        exported.append(kept)

    said: list[str] = []
    timer = DenseTimer(dense, RuntimeOptions(threads=1, repeats=2), 1)
    kept = [np.array([8.0, 5.0]), np.array([4.0, 5.0])]
    timed = time_allocations(timer, network, dense, groups, kept, export, said.append)
    assert [entry.tolist() for entry in exported] == [[8, 5], [4, 5]]
    assert len(timed) == 2
    assert [line for line in said if isinstance(line, Note)] == [line for line in said if "takes longer" in line]
    assert sum("takes longer" in line for line in said) == 1


def test_a_layer_that_cannot_shrink_is_named(tmp_path: Path) -> None:
    network = Flattened().eval()
    dense = tmp_path / "dense.onnx"
    write_onnx(network, SHAPE, dense, {})
    group = find_groups(network, torch.zeros(2, *SHAPE))[0]
    with pytest.raises(ModelError, match="the dense ONNX file cannot be sliced: "):
        OnnxSlicer(network, dense).write(tmp_path / "sliced.onnx", [(group.members[0], [99])])
