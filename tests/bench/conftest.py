"""Tiny ONNX networks for ONNX Runtime to run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper


@pytest.fixture
def make_network(tmp_path: Path) -> Callable[..., Path]:
    """Conv, Relu, mean: images (B, 3, 8, 8) to features (B, width)."""

    def make(
        name: str = "dense",
        *,
        width: int = 8,
        batch: int | str | None = "batch",
        image: tuple[int | str, ...] = (3, 8, 8),
        dtype: int = TensorProto.FLOAT,
    ) -> Path:
        generator = np.random.default_rng(width)
        weight = generator.standard_normal((width, 3, 3, 3)).astype(helper.tensor_dtype_to_np_dtype(dtype))
        nodes = [
            helper.make_node("Conv", ["images", "weight"], ["conv"], name="the_conv", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["conv"], ["relu"], name="the_relu"),
            helper.make_node("GlobalAveragePool", ["relu"], ["mean"], name="the_mean"),
            # What an exporter writes for x.reshape(len(x), -1) with a dynamic batch.
            helper.make_node("Shape", ["mean"], ["shape"], name="the_shape", start=0, end=1),
            helper.make_node("Concat", ["shape", "rest"], ["target"], name="the_concat", axis=0),
            helper.make_node("Reshape", ["mean", "target"], ["features"], name="the_reshape"),
        ]
        graph = helper.make_graph(
            nodes,
            "tiny",
            [helper.make_tensor_value_info("images", dtype, [batch, *image])],
            [helper.make_tensor_value_info("features", dtype, [batch, width])],
            [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(np.array([-1]), "rest")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        path = tmp_path / f"{name}.onnx"
        onnx.save(model, path)
        return path

    return make


@pytest.fixture
def make_several(tmp_path: Path) -> Callable[..., Path]:
    """Several inputs by name, each a type and sizes; every one is returned as float32."""

    def make(
        name: str,
        inputs: Mapping[str, tuple[int, Sequence[int | str]]],
        ranges: Mapping[str, Sequence[int]] | None = None,
    ) -> Path:
        graph = helper.make_graph(
            [helper.make_node("Cast", [entry], [f"{entry}_out"], to=TensorProto.FLOAT) for entry in inputs],
            "several",
            [helper.make_tensor_value_info(entry, kind, sizes) for entry, (kind, sizes) in inputs.items()],
            [
                helper.make_tensor_value_info(f"{entry}_out", TensorProto.FLOAT, sizes)
                for entry, (_, sizes) in inputs.items()
            ],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        if ranges is not None:
            helper.set_model_props(model, {"pruneport.input_ranges": json.dumps(ranges)})
        path = tmp_path / f"{name}.onnx"
        onnx.save(model, path)
        return path

    return make
