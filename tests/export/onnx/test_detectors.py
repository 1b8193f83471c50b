"""Detectors through torch's exporter: what they find, suppress and pool is one graph, which finds the same."""

from __future__ import annotations

from pathlib import Path

import detection_networks
import onnx
import pytest
import torch
import torchvision
from torch import nn

from pruneport.errors import ExportError
from pruneport.export.cpu_session import open_cpu_session, output_names
from pruneport.export.onnx.exporter import export_network, fitted_options
from pruneport.export.options import DEFAULTS, ExportOptions
from pruneport.export.parity import Parity, check_seeded
from pruneport.models.outputs import detections_in, read_outputs

SHAPE = (3, detection_networks.SIZE, detection_networks.SIZE)


def _compare(network: nn.Module, path: Path, batch: int = 2) -> Parity:
    session = open_cpu_session(path)
    return check_seeded("dense", network, session, SHAPE, (batch,), output_names(session))[0]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    network = detection_networks.ssd()
    path = tmp_path_factory.mktemp("ssd") / "model.onnx"
    exported = export_network(network, SHAPE, ExportOptions(batch_size_fixed=2))
    assert exported.outputs[0] == "output.0.boxes"
    assert exported.outputs[3] == "output.1.boxes"
    exported.save(path, {})
    return network, path


@pytest.mark.slow
def test_a_detector_with_suppression_by_class(exported: tuple[nn.Module, Path]) -> None:
    network, path = exported
    found = _compare(network, path)
    assert (found.ok, found.constant, found.max_abs_error) == (True, False, None), found.fault
    assert found.detections is not None
    assert (found.detections.torch, found.detections.unmatched) == (240, 0)
    operators = [node.op_type for node in onnx.load(path).graph.node]
    assert operators.count("NonMaxSuppression") == 2


@pytest.mark.slow
def test_a_file_that_suppresses_otherwise_is_found_out(exported: tuple[nn.Module, Path], tmp_path: Path) -> None:
    network, path = exported
    model = onnx.load(path)
    suppression, _ = [node for node in model.graph.node if node.op_type == "NonMaxSuppression"]
    threshold = onnx.numpy_helper.from_array(torch.tensor([0.6]).numpy(), "other")
    model.graph.initializer.append(threshold)
    suppression.input[3] = "other"
    onnx.save(model, tmp_path / "other.onnx")
    found = _compare(network, tmp_path / "other.onnx")
    assert not found.ok
    assert "have none of the same label in the other with an IoU of at least 0.99" in found.fault


def test_what_is_replaced_comes_back(exported: tuple[nn.Module, Path]) -> None:
    def of_torchvision() -> list[object]:
        pooling = torchvision.ops.poolers._multiscale_roi_align
        return [torchvision.ops.batched_nms, torchvision.ops.boxes.batched_nms, detection_networks.batched_nms, pooling]

    before = of_torchvision()

    class Failing(detection_networks.Ssd):
        def forward(self, images: torch.Tensor) -> list[dict[str, torch.Tensor]]:
            found = super().forward(images)
            if torch.compiler.is_exporting():
                raise RuntimeError("not today")
            return found

    with pytest.raises(ExportError, match="not today"):
        export_network(detection_networks.settled(Failing()), SHAPE, ExportOptions(batch_size_fixed=1))
    assert all(one is other for one, other in zip(before, of_torchvision(), strict=True))


def test_options_of_a_detector() -> None:
    network = detection_networks.ssd()
    assert fitted_options(network, SHAPE).batch_size_fixed == 1
    assert fitted_options(network, SHAPE, ExportOptions(batch_size_fixed=4)).batch_size_fixed == 4
    with pytest.raises(ExportError, match=r"finds boxes in images of 64 x 64.*`dynamic=batch`"):
        fitted_options(network, SHAPE, ExportOptions(dynamic="batch,height,width"))
    assert fitted_options(detection_networks.yolo(), SHAPE) is DEFAULTS


def test_what_a_detector_returns_is_known_by_its_form() -> None:
    with torch.no_grad():
        found = read_outputs(detection_networks.ssd()(torch.randn(2, *SHAPE)))
    assert [names[0] for names in detections_in(found.tensors)] == ["output.0.boxes", "output.1.boxes"]
    assert found.main == "output.0.scores"
    with torch.no_grad():
        found = read_outputs(detection_networks.detr()(torch.randn(2, *SHAPE)))
    assert (detections_in(found.tensors), found.main) == ([], "pred_logits")
