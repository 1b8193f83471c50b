"""Which layers of an int8 file stay in float: the costliest, as few as hold the limit, chosen on calibration inputs."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import pytest
import torch
from torch import Tensor, nn

from pruneport.compress.activations.calibration import Calibration, in_memory
from pruneport.compress.records import Calibrated
from pruneport.export.cpu_session import open_cpu_session, run_onnx
from pruneport.export.onnx.exporter import export_network
from pruneport.export.onnx.onnx_file import check_onnx, read_metadata
from pruneport.export.precisions.float_choice import FloatChooser, layers_of
from pruneport.export.precisions.float_layers import FloatLayers
from pruneport.export.precisions.quantise import quantise
from pruneport.export.precisions.weights_check import check_weights

SPREAD = 2000.0
"""How much larger one channel between ``b`` and ``c`` is: int8 has no steps left for the others."""


class Uneven(NamedTuple):
    network: nn.Module
    path: Path
    inputs: Tensor


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Uneven:
    torch.manual_seed(0)
    layers = OrderedDict(
        a=nn.Conv2d(2, 8, 3),
        a_relu=nn.ReLU(),
        b=nn.Conv2d(8, 8, 3),
        b_relu=nn.ReLU(),
        c=nn.Conv2d(8, 8, 3),
        c_relu=nn.ReLU(),
        flat=nn.Flatten(),
        head=nn.Linear(32, 5),
    )
    network = nn.Sequential(layers).eval()
    with torch.no_grad():
        layers["b"].weight[0] *= SPREAD
        layers["b"].bias[0] = SPREAD
        layers["c"].weight[:, 0] /= SPREAD
    path = tmp_path_factory.mktemp("uneven") / "model.onnx"
    export_network(network, (2, 8, 8)).save(path, {})
    return Uneven(network, path, torch.randn(96, 2, 8, 8, generator=torch.Generator().manual_seed(1)))


def _calibration(uneven: Uneven, *, labelled: bool) -> Calibration:
    parts = uneven.inputs[:64].split(16)
    labels = tuple(uneven.network(part).argmax(1) for part in parts) if labelled else None
    return Calibration(batches=in_memory(parts), labels=labels, classes=5, record=Calibrated(inputs="images", count=64))


def _made(uneven: Uneven, path: Path, *, labelled: bool = False, **chosen: Any) -> FloatLayers:
    calibration = _calibration(uneven, labelled=labelled)
    choose = FloatChooser(provider="cpu", calibration=calibration, **chosen)
    return quantise(uneven.path, path, calibration.batches, "cpu", "64 images", choose=choose)


def _agreement(uneven: Uneven, path: Path) -> float:
    inputs = uneven.inputs[64:]
    (ours,), (exact,) = (run_onnx(open_cpu_session(file), inputs) for file in (path, uneven.path))
    return float((ours.argmax(1) == exact.argmax(1)).mean())


def test_a_layer_is_a_module_with_what_only_moves_its_results(uneven: Uneven) -> None:
    layers = layers_of(uneven.path, "cpu")
    assert list(layers) == ["a", "b", "c", "head"]
    assert layers["a"] == ["a/Conv", "a_relu/Relu"]
    assert layers["c"] == ["c/Conv", "c_relu/Relu", "flat/Reshape"]


@pytest.mark.parametrize("labelled", [False, True])
def test_the_costliest_layers_stay_in_float_until_the_limit_holds(
    uneven: Uneven, tmp_path: Path, labelled: bool
) -> None:
    path = tmp_path / "model.int8.onnx"
    assert _made(uneven, path) == FloatLayers()
    before = _agreement(uneven, path)
    kept = _made(uneven, path, labelled=labelled, max_drop=5.0)
    assert set(kept.layers) == {"b", "c"}, "the channel is rounded where it leaves b and where it enters c"
    of = "top-1" if labelled else "agreement with fp32"
    assert f"points of {of} were lost on 64 calibration images" in kept.reason
    assert "with the costliest 2 layers in float" in kept.reason
    assert "of 5 allowed" in kept.reason
    assert before < 0.8 < 0.9 < _agreement(uneven, path), "on inputs that the choice has not seen"
    check_onnx(path)
    assert FloatLayers.read(read_metadata(path)) == FloatLayers(layers=kept.layers, reason=kept.reason)
    said, wrong = check_weights(path, uneven.path)
    assert (wrong, "2 are left in float" in said) == ([], True)


def test_between_two_layers_in_float_nothing_is_rounded(uneven: Uneven, tmp_path: Path) -> None:
    path = tmp_path / "model.int8.onnx"
    kept = _made(uneven, path, patterns=("b", "c"))
    assert (kept.layers, kept.reason) == (("b", "c"), "They were named in `float_layers`.")
    graph = onnx.load(path).graph
    readers = {name: node.op_type for node in graph.node for name in node.input}
    by_name = {node.name: node for node in graph.node}
    assert readers[by_name["b/Conv"].output[0]] == "Relu"
    assert readers[by_name["b_relu/Relu"].output[0]] == "Conv"
    assert readers[by_name["flat/Reshape"].output[0]] == "QuantizeLinear", "the next layer is in int8"


def test_no_layer_is_measured_where_the_limit_holds(uneven: Uneven, tmp_path: Path) -> None:
    said: list[str] = []
    kept = _made(uneven, tmp_path / "model.int8.onnx", max_drop=100.0, progress=said.append)
    assert kept == FloatLayers()
    assert not [line for line in said if "layer" in line]


def test_the_fewest_of_many_are_found_by_halving(uneven: Uneven, tmp_path: Path) -> None:
    """With a limit that only fp32 holds, all layers but the cheapest stay in float, or all."""
    kept = _made(uneven, tmp_path / "model.int8.onnx", patterns=("head",), max_drop=0.0)
    assert kept.layers[0] == "head"
    assert {"b", "c"} <= set(kept.layers)
    assert "; 1 of them was named in `float_layers`." in kept.reason
    assert _agreement(uneven, tmp_path / "model.int8.onnx") > 0.95


def test_what_a_file_says_is_read_as_text() -> None:
    assert FloatLayers.read({"float_layers": "{broken"}) == FloatLayers()
    assert FloatLayers.read({"float_layers": '{"a": 1}'}) == FloatLayers()
    many = FloatLayers(layers=tuple(f"layer{number}" for number in range(12)), reason="Why.")
    assert str(many).endswith("layer9 and 2 more. Why.")
    assert str(FloatLayers(layers=("a",), reason="Why.")) == "1 layer in float: a. Why."
