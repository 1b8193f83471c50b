"""The file that is timed in int8 is int8: of the dense file, of its slices, and of files with other names."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from pruneport.bench.latency.timed_form import TimedForm
from pruneport.bench.latency.timer import DenseTimer
from pruneport.bench.options import PlaceOptions, RuntimeOptions
from pruneport.bench.timings.slicing import OnnxSlicer
from pruneport.bench.timings.staircase import measure_staircase
from pruneport.compress.graph.groups import find_groups
from pruneport.export.cpu_session import open_cpu_session, run_onnx
from pruneport.export.onnx.onnx_file import check_onnx, write_onnx

SHAPE = (3, 8, 8)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.Flatten(), nn.Linear(128, 4))
    return nn.Sequential(*layers).eval()


@pytest.fixture(scope="module")
def dense(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dense") / "dense.onnx"
    write_onnx(network, SHAPE, path, {})
    return path


def _operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def test_fp32_is_timed_as_it_is(dense: Path) -> None:
    assert TimedForm("cpu", "fp32")(dense) == dense


def test_slices_share_the_ranges_of_the_dense_file(network: nn.Module, dense: Path, tmp_path: Path) -> None:
    form = TimedForm("cpu", "int8")
    made = form(dense)
    assert _operators(made)["QuantizeLinear"] >= 3
    assert "Relu" not in _operators(made), "as in the int8 files that are shipped"
    ranges = form._ranges
    group = find_groups(network, torch.zeros(2, *SHAPE))[0]
    OnnxSlicer(network, dense).write(tmp_path / "sliced.onnx", [(member, range(4)) for member in group.members])
    sliced = form(tmp_path / "sliced.onnx")
    assert form._ranges is ranges
    check_onnx(sliced)
    weights = {weight.name: tuple(weight.dims) for weight in onnx.load(sliced).graph.initializer}
    assert weights["0.weight_quantized"] == (4, 3, 3, 3)
    assert run_onnx(open_cpu_session(sliced), torch.zeros(2, *SHAPE))[0].shape == (2, 4)


def test_a_file_with_other_names_has_ranges_of_its_own(dense: Path, tmp_path: Path) -> None:
    write_onnx(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid()).eval(), SHAPE, tmp_path / "other.onnx", {})
    form = TimedForm("cpu", "int8")
    form(dense)
    assert _operators(form(tmp_path / "other.onnx"))["QuantizeLinear"] >= 2


def test_slices_are_timed_in_fp16(network: nn.Module, dense: Path, tmp_path: Path) -> None:
    """All weights are halves, and the outputs are those of the fp32 slice within their rounding."""
    group = find_groups(network, torch.zeros(2, *SHAPE))[0]
    sliced = tmp_path / "sliced.onnx"
    OnnxSlicer(network, dense).write(sliced, [(member, range(4)) for member in group.members])
    made = TimedForm("cuda", "fp16")(sliced)
    check_onnx(made)
    kinds = {weight.data_type for weight in onnx.load(made).graph.initializer if len(weight.dims) > 1}
    assert kinds == {onnx.TensorProto.FLOAT16}
    inputs = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    (wanted,), (got,) = (run_onnx(open_cpu_session(path), inputs) for path in (sliced, made))
    assert got.dtype == wanted.dtype
    assert 0 < abs(got - wanted).max() < 0.01 * abs(wanted).max()


def test_both_are_timed_in_int8(dense: Path) -> None:
    timed = DenseTimer(dense, RuntimeOptions(threads=1, repeats=2), 1, "int8").time(dense, 4)
    assert timed.rounds == 4


def test_the_step_is_measured_in_int8() -> None:
    found = measure_staircase(PlaceOptions(threads=1), 1, "int8")
    assert {found.convolution, found.depthwise} <= {None, 4, 8, 16, 32, 64}
