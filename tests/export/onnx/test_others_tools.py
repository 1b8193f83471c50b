"""Our files in other people's tools: onnx's strict shape inference, ONNX Runtime's quantiser and its optimiser."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
import torchvision
from onnxruntime.quantization import quant_pre_process, quantize_dynamic
from onnxruntime.transformers import optimizer
from torch import nn

from pruneport.export.onnx.onnx_file import write_onnx
from pruneport.export.options import ExportOptions

Make = Callable[[], nn.Module]
_NETWORKS: dict[str, tuple[Make, tuple[int, int, int]]] = {
    "resnet18": (torchvision.models.resnet18, (3, 64, 64)),
    "mobilenet_v2": (torchvision.models.mobilenet_v2, (3, 64, 64)),
    "vit": (lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2), (3, 32, 32)),
}


_SLOW = [pytest.param(name, marks=[pytest.mark.slow] * (name != "vit")) for name in _NETWORKS]


@pytest.fixture(scope="session", params=[pytest.param("dense digits", marks=pytest.mark.slow), "pruned digits", *_SLOW])
def file(request: pytest.FixtureRequest, digits: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("file") / "model.onnx"
    if request.param in _NETWORKS:
        make, shape = _NETWORKS[request.param]
        torch.manual_seed(0)
        write_onnx(make().eval(), shape, path, {})
    else:
        network = digits.dense if request.param == "dense digits" else digits.pruned.network
        write_onnx(network, (1, 8, 8), path, {})
    return path


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


def _outputs(path: Path, size: tuple[int, ...]) -> Any:
    images = np.random.default_rng(0).normal(size=(3, *size)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images})[0]


def _size(path: Path) -> tuple[int, ...]:
    (value,) = onnx.load(path).graph.input
    return tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)[1:]


def test_strict_shape_inference_agrees_with_every_shape_in_the_file(file: Path) -> None:
    model = onnx.load(file)
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    assert len(inferred.graph.value_info) >= len(model.graph.value_info) > 0


def test_no_shape_of_a_weight_is_said_twice(file: Path) -> None:
    graph = onnx.load(file).graph
    assert {value.name for value in graph.value_info}.isdisjoint(weight.name for weight in graph.initializer)
    assert all(value.type.tensor_type.elem_type for value in graph.value_info)


@pytest.mark.parametrize("prepared", [False, True])
def test_onnx_runtime_quantises_it(prepared: bool, file: Path, tmp_path: Path) -> None:
    """Issue 17: the quantiser transposes a linear layer's weight, whose shape stood in the file a second time."""
    given = file
    if prepared:
        given = tmp_path / "prepared.onnx"
        quant_pre_process(str(file), str(given))
    quantize_dynamic(given, tmp_path / "int8.onnx")
    wanted, found = _outputs(file, _size(file)), _outputs(tmp_path / "int8.onnx", _size(file))
    assert np.abs(found - wanted).max() < 0.1 * np.abs(wanted).max()
    kinds = {node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node}
    assert kinds & {"MatMulInteger", "ConvInteger"}


def test_onnx_runtime_optimises_it_as_a_transformer(file: Path, tmp_path: Path) -> None:
    optimizer.optimize_model(str(file), model_type="vit", num_heads=3, hidden_size=192).save_model_to_file(
        str(tmp_path / "optimised.onnx")
    )
    wanted, found = _outputs(file, _size(file)), _outputs(tmp_path / "optimised.onnx", _size(file))
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.slow
@pytest.mark.parametrize("opset", [18, 26])
def test_so_it_is_in_the_oldest_opset_and_the_newest(opset: int, digits: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write_onnx(digits.dense, (1, 8, 8), path, {}, ExportOptions(opset=opset))
    onnx.shape_inference.infer_shapes(onnx.load(path), check_type=True, strict_mode=True, data_prop=True)
    quant_pre_process(str(path), str(tmp_path / "prepared.onnx"))
