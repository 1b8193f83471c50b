"""int8: standard ONNX that computes what its whole numbers say, by an independent reference in NumPy."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from pruneport.errors import ExportError
from pruneport.export.cpu_session import open_cpu_session, run_onnx
from pruneport.export.onnx.exporter import export_network
from pruneport.export.onnx.onnx_file import check_onnx, read_metadata
from pruneport.export.precisions.providers import Int8Provider
from pruneport.export.precisions.quantise import quantise
from pruneport.export.precisions.quantiser import left_in_float


def _made(small: Any, path: Path, provider: Int8Provider = "cpu", **options: Any) -> onnx.ModelProto:
    batches = [lambda part=part: part for part in small.inputs]
    quantise(small.path, path, batches, provider, "21 images", **options)  # type: ignore[arg-type]
    return onnx.load(path)


def _constants(model: onnx.ModelProto) -> dict[str, Any]:
    return {weight.name: numpy_helper.to_array(weight) for weight in model.graph.initializer}


class _Whole:
    """Whole numbers with their scale and zero point, which broadcast along an axis."""

    def __init__(self, numbers: Any, scale: Any, zero: Any, axis: int) -> None:
        sizes = [-1 if place == axis else 1 for place in range(numbers.ndim)] if np.ndim(scale) else []
        self.numbers = numbers.astype(np.int64) - np.reshape(zero.astype(np.int64), sizes)
        self.scale = np.asarray(scale, np.float64)


def _reference(model: onnx.ModelProto, inputs: Any) -> Any:
    """Run the file by hand: products and sums of whole numbers, scales in float64, nothing of ONNX Runtime."""
    values: dict[str, Any] = {**_constants(model), model.graph.input[0].name: inputs.astype(np.float64)}
    for node in model.graph.node:
        given = [values[name] for name in node.input]
        said = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
        if node.op_type == "DequantizeLinear":
            result: Any = _Whole(*given, said.get("axis", 1))
        elif node.op_type == "QuantizeLinear":
            numbers, scale, zero = given
            low, high = np.iinfo(zero.dtype).min, np.iinfo(zero.dtype).max
            numbers = numbers.numbers * numbers.scale if isinstance(numbers, _Whole) else numbers
            result = np.clip(np.rint(numbers / scale.astype(np.float64)) + zero, low, high).astype(zero.dtype)
        elif node.op_type == "Reshape":
            whole, shape = given
            result = whole
            result.numbers = whole.numbers.reshape(len(whole.numbers), -1)
            assert list(shape)[1:] in ([-1], [96])
        elif node.op_type == "Conv":
            image, weight, bias = given
            groups = said.get("group", 1)
            sums = _convolved(image.numbers, weight.numbers, groups) + bias.numbers[None, :, None, None]
            result = sums * image.scale * weight.scale.reshape(1, -1, 1, 1)
            np.testing.assert_allclose(bias.scale, image.scale * weight.scale, rtol=1e-6)
        elif node.op_type == "Gemm":
            assert said["transB"] == 1
            row, weight, bias = given
            result = (row.numbers @ weight.numbers.T + bias.numbers) * row.scale * weight.scale
        else:
            raise AssertionError(node.op_type)
        values[node.output[0]] = result
    last = values[model.graph.output[0].name]
    return last.numbers * last.scale if isinstance(last, _Whole) else last


def _convolved(image: Any, weight: Any, groups: int) -> Any:
    """(B, C, H, W) with (D, C / groups, 3, 3), in whole numbers."""
    windows = np.lib.stride_tricks.sliding_window_view(image, (3, 3), (2, 3))
    parts = zip(np.split(windows, groups, 1), np.split(weight, groups), strict=True)
    return np.concatenate([np.einsum("bchwij,dcij->bdhw", one, other) for one, other in parts], 1)


def test_cpu_form_computes_what_its_whole_numbers_say(small: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.int8.onnx"
    model = _made(small, path)
    inputs = small.inputs[0]
    (ours,) = run_onnx(open_cpu_session(path), inputs)
    reference = _reference(model, inputs.numpy())
    step = float(_constants(model)[model.graph.node[-1].input[1]])
    off = np.abs(ours - reference) / step
    assert off.max() <= 1.001  # where a sum lies between two steps, float32 may take the other
    assert (off < 1e-3).mean() > 0.95
    exact = small.network(inputs).detach().numpy()
    assert np.square(ours - exact).mean() < 1e-2 * exact.var()


def test_scales_are_those_of_weights_and_of_the_ranges_that_were_seen(small: Any, tmp_path: Path) -> None:
    found = _constants(_made(small, tmp_path / "model.int8.onnx"))
    weight = small.network[0].weight.detach().double().numpy()
    np.testing.assert_allclose(found["0.weight_scale"], np.abs(weight).max((1, 2, 3)) / 127, rtol=1e-2)
    assert (found["0.weight_quantized"].dtype, found["0.weight_zero_point"].any()) == (np.int8, False)
    parts = [part for batch in small.inputs for part in torch.split(batch, 8)]
    low = np.mean([part.min().item() for part in parts])
    high = np.mean([part.max().item() for part in parts])
    np.testing.assert_allclose(found["input_scale"], (high - low) / 255, rtol=1e-5)
    assert found["input_zero_point"] == np.rint(-low / ((high - low) / 255))
    assert found["input_zero_point"].dtype == np.uint8


def test_it_is_standard_onnx_with_the_metadata_of_fp32(small: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.int8.onnx"
    model = _made(small, path)
    check_onnx(path)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    assert {entry.domain for entry in model.opset_import} == {""}
    said = {"precision": "int8", "int8_for": "cpu", "calibration": "21 images", "plan_sha256": "of the plan"}
    assert read_metadata(path).items() >= said.items()
    assert not [entry.key for entry in model.metadata_props if not entry.key.startswith("pruneport.")]
    assert left_in_float(small.path, "cpu") == {}


def test_tensorrt_form_is_symmetric_and_leaves_results_and_biases_in_float(
    small: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.int8.onnx"
    model = _made(small, path, "tensorrt")
    assert capsys.readouterr().out == "", "standard output is for --json"
    check_onnx(path)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    constants = _constants(model)
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = constants[node.input[2]]
            assert (zero.dtype, zero.any()) == (np.int8, False), node.name
    makers = {output: node.op_type for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            assert [makers.get(name) for name in node.input[:2]] == ["DequantizeLinear"] * 2
            assert constants[node.input[2]].dtype == np.float32
    assert makers[model.graph.output[0].name] == "Gemm"
    assert Counter(node.op_type for node in model.graph.node)["Relu"] == 1
    (ours,) = run_onnx(open_cpu_session(path), small.inputs[0])
    exact = small.network(small.inputs[0]).detach().numpy()
    assert np.square(ours - exact).mean() < 1e-3 * exact.var()
    assert read_metadata(path)["int8_for"] == "tensorrt"


def test_one_outlier_takes_no_steps_from_the_others_in_tensorrt_form(small: Any, tmp_path: Path) -> None:
    inputs = torch.randn(1600, 2, 8, 8, generator=torch.Generator().manual_seed(2))  # 204,800 values
    largest = float(inputs.abs().max())
    inputs[-1, 0, 0, 0] = 1000.0
    path = tmp_path / "model.int8.onnx"
    quantise(small.path, path, [lambda part=part: part for part in inputs.split(400)], "tensorrt", "")  # type: ignore[misc]
    scale = float(_constants(onnx.load(path))["input_scale"])
    assert 0.8 * largest < 127 * scale < 1.2 * largest


def test_operators_that_stay_in_float_are_counted(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Any:
            return torch.softmax(self.layer(torch.erf(x.flatten(1)).exp()), 1)

    export_network(Odd().eval(), (1, 4, 4)).save(tmp_path / "odd.onnx", {})
    assert left_in_float(tmp_path / "odd.onnx", "cpu") == {"Erf": 1, "Exp": 1}
    assert left_in_float(tmp_path / "odd.onnx", "tensorrt") == {"Erf": 1, "Exp": 1, "Softmax": 1}


def test_weights_may_lie_in_a_file_of_their_own(small: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.int8.onnx"
    _made(small, path, external_data=True)
    assert (tmp_path / "model.int8.onnx.data").is_file()
    (ours,) = run_onnx(open_cpu_session(path), small.inputs[0])
    _made(small, tmp_path / "one.onnx")
    assert np.array_equal(ours, run_onnx(open_cpu_session(tmp_path / "one.onnx"), small.inputs[0])[0])


def test_what_the_quantiser_cannot_do_is_said(small: Any, tmp_path: Path) -> None:
    wrong = [lambda: torch.zeros(4, 7, 8, 8)]
    with pytest.raises(ExportError, match=r"cannot make int8 of model\.onnx: .*Leave int8 out of `precisions`"):
        quantise(small.path, tmp_path / "q.onnx", wrong, "cpu", "")
    assert not (tmp_path / "q.onnx").exists()
