"""An int8 file of other weights than the fp32 file's is found, by less than a step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from pruneport.export.onnx.exporter import export_network
from pruneport.export.precisions.providers import Int8Provider
from pruneport.export.precisions.quantise import quantise
from pruneport.export.precisions.weights_check import check_weights


@pytest.mark.parametrize("provider", ["cpu", "tensorrt"])
def test_its_own_weights_pass(small: Any, tmp_path: Path, provider: Int8Provider) -> None:
    quantise(small.path, tmp_path / "q.onnx", [lambda: small.inputs[0]], provider, "")
    said = "q.onnx: 3 weights are those of model.onnx to half a step of int8"
    assert check_weights(tmp_path / "q.onnx", small.path) == (said, [])


def _one_step(whole: Any) -> Any:
    whole[0] += np.where(whole[0] > 0, -1, 1)
    return whole


def _transposed(whole: Any) -> Any:
    return np.ascontiguousarray(whole.T)


@pytest.mark.parametrize("change", [_one_step, _transposed])
def test_other_weights_are_named(small: Any, tmp_path: Path, change: Callable[[Any], Any]) -> None:
    path = tmp_path / "q.onnx"
    quantise(small.path, path, [lambda: small.inputs[0]], "cpu", "")
    model = onnx.load(path)
    (weight,) = [entry for entry in model.graph.initializer if entry.name == "4.weight_quantized"]
    weight.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(weight).copy()), weight.name))
    onnx.save(model, path)
    assert check_weights(path, small.path)[1] == ["4.weight"]


def test_a_weight_that_is_not_there_is_named(small: Any, tmp_path: Path) -> None:
    path = tmp_path / "q.onnx"
    quantise(small.path, path, [lambda: small.inputs[0]], "cpu", "")
    model = onnx.load(path)
    for entry in model.graph.initializer:
        entry.name = entry.name.replace("0.weight", "none")
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = name.replace("0.weight", "none")
    onnx.save(model, path)
    assert check_weights(path, small.path)[1] == ["0.weight"]


def test_constants_with_a_zero_point_are_compared_too(tmp_path: Path) -> None:
    """Of a sum the quantiser makes unsigned numbers, with a zero point: a position embedding, for one."""

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.places = nn.Parameter(torch.linspace(-1, 3, 16).reshape(1, 1, 4, 4))
            self.layer = nn.Conv2d(1, 2, 3)

        def forward(self, x: Tensor) -> Any:
            return self.layer(x + self.places)

    path, made = tmp_path / "model.onnx", tmp_path / "q.onnx"
    export_network(Positions().eval(), (1, 4, 4)).save(path, {})
    quantise(path, made, [lambda: torch.randn(8, 1, 4, 4)], "cpu", "")
    assert "places_quantized" in {weight.name for weight in onnx.load(made).graph.initializer}
    assert check_weights(made, path)[1] == []
