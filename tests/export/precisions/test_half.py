"""fp16: within a tolerance that the graph gives, float outside, and refused by the layer's name where it overflows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from pruneport.errors import ExportError
from pruneport.export.cpu_session import open_cpu_session, run_onnx
from pruneport.export.onnx.exporter import export_network
from pruneport.export.onnx.onnx_file import check_onnx, read_metadata
from pruneport.export.parity import check_seeded
from pruneport.export.precisions.half import check_half, half_tolerance, rounding_steps


def test_it_computes_in_half_between_floats(small: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.fp16.onnx"
    export_network(small.network, (2, 8, 8), precision="fp16").save(path, {})
    check_onnx(path)
    model = onnx.load(path)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    ends = [value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)]
    assert ends == [onnx.TensorProto.FLOAT] * 2
    weights = {weight.name: weight.data_type for weight in model.graph.initializer}
    names = ("0.weight", "0.bias", "2.weight", "4.weight")
    assert {weights[name] for name in names} == {onnx.TensorProto.FLOAT16}
    assert read_metadata(path)["precision"] == "fp16"
    assert {parameter.dtype for parameter in small.network.parameters()} == {torch.float32}  # a copy was halved

    session = open_cpu_session(path)
    entries = check_seeded(
        "dense", small.network, session, (2, 8, 8), (1, 3), precision="fp16", tolerance=half_tolerance(small.path)
    )
    assert [(entry.ok, entry.precision) for entry in entries] == [(True, "fp16")] * 2
    assert not any(entry.ok for entry in check_seeded("dense", small.network, session, (2, 8, 8), (1, 3)))  # as fp32


def test_tolerance_is_of_the_roundings_on_the_longest_way(small: Any, tmp_path: Path) -> None:
    # the input, three layers with their weights; ReLU and flattening round nothing
    assert rounding_steps(small.path) == 1 + 3 * 2
    assert half_tolerance(small.path).rtol == pytest.approx(4 / 2048 * 7**0.5)

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(2, 2, 1), nn.Sequential(nn.Conv2d(2, 2, 1), nn.Sigmoid(), nn.Conv2d(2, 2, 1))

        def forward(self, x: Tensor) -> Any:
            return self.one(x) + self.two(x)

    export_network(Branches().eval(), (2, 4, 4)).save(tmp_path / "b.onnx", {})
    assert rounding_steps(tmp_path / "b.onnx") == 1 + 2 + 1 + 2 + 1


def test_a_wrong_weight_is_beyond_the_tolerance(small: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.fp16.onnx"
    export_network(small.network, (2, 8, 8), precision="fp16").save(path, {})
    model = onnx.load(path)
    (weight,) = [entry for entry in model.graph.initializer if entry.name == "4.weight"]
    wrong = onnx.numpy_helper.to_array(weight).copy()
    wrong[0] *= np.float16(1.1)
    weight.CopyFrom(onnx.numpy_helper.from_array(wrong, weight.name))
    onnx.save(model, path)
    entries = check_seeded(
        *("dense", small.network, open_cpu_session(path), (2, 8, 8), (8,)),
        precision="fp16",
        tolerance=half_tolerance(small.path),
    )
    assert not entries[0].ok


def test_what_is_too_large_for_half_is_named() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1)).eval()
    with torch.no_grad():
        network[0].weight.fill_(60_000)
        network[2].weight.fill_(1e-5)
    check_half("dense", network, [torch.ones(1, 1, 2, 2)])
    said = r"fp16, whose largest number is 65504, and in the pruned network what 0 returns reaches 1\.8e\+05"
    with pytest.raises(ExportError, match=said):
        check_half("pruned", network, [torch.full((1, 1, 2, 2), 3.0)])
    with torch.no_grad():
        network[0].weight.fill_(70_000)
    with pytest.raises(ExportError, match=r"the weight 0\.weight reaches 7e\+04"):
        check_half("dense", network, [])

    class Squares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Identity()

        def forward(self, x: Tensor) -> Any:
            return self.last(x * x * x)

    with pytest.raises(ExportError, match="what goes into last reaches 1e\\+06"):
        check_half("dense", Squares(), [torch.full((1, 1, 1, 1), 100.0)])


def test_a_forward_that_makes_floats_of_its_own_is_said() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Any:
            return self.layer(x.flatten(1) + torch.ones(4))

    export_network(Own().eval(), (1, 2, 2))
    with pytest.raises(ExportError, match=r"torch cannot export Own in fp16: .*leave fp16 out of `precisions`"):
        export_network(Own().eval(), (1, 2, 2), precision="fp16")


def test_float_outputs_stay_what_they_are() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Any:
            scores = self.layer(x.flatten(1))
            return {"scores": scores, "class": scores.argmax(1)}

    exported = export_network(Two().eval(), (1, 2, 2), precision="fp16")
    assert exported.outputs == ("scores", "class")


def test_it_runs_where_it_says(small: Any, tmp_path: Path) -> None:
    export_network(small.network, (2, 8, 8), precision="fp16").save(tmp_path / "h.onnx", {})
    (ours,) = run_onnx(open_cpu_session(tmp_path / "h.onnx"), small.inputs[1])
    assert (ours.dtype, ours.shape) == (np.float32, (5, 5))
