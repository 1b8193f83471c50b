"""Opsets: what ONNX Runtime takes, and operators that are not in one, or change on the way to it."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
import torchvision
from onnxscript import ir
from torch import Tensor, nn

from pruneport.errors import ExportError
from pruneport.export.onnx.exporter import export_network
from pruneport.export.onnx.onnx_file import check_onnx
from pruneport.export.onnx.opsets import CONVERTED, newest_opset, raise_opset
from pruneport.export.options import ExportOptions
from pruneport.export.parity import check_seeded, open_cpu_session, output_names


class _Deformed(nn.Module):
    """DeformConv came with opset 19."""

    def __init__(self) -> None:
        super().__init__()
        self.offsets = nn.Conv2d(1, 18, 3, padding=1)
        self.conv = torchvision.ops.DeformConv2d(1, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x, self.offsets(x))


class _Normed(nn.Module):
    """Its two normalisations are single operators from opsets 21 and 23 on."""

    def __init__(self) -> None:
        super().__init__()
        self.group, self.root = nn.GroupNorm(2, 4), nn.RMSNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.root(self.group(x.expand(-1, 4, -1, -1)))


def _model(kind: str, opset: int) -> ir.Model:
    value = ir.val("x", ir.DataType.FLOAT, [1])
    node = ir.node(kind, inputs=[value], attributes={"to": 1} if kind == "Cast" else None)
    return ir.Model(ir.Graph([value], node.outputs, nodes=[node], opset_imports={"": opset}), ir_version=10)


@pytest.mark.parametrize("opset", [18, 22, CONVERTED, newest_opset()])
def test_a_file_has_the_opset_that_was_asked_for_and_says_what_torch_says(opset: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, path = _Normed().eval(), tmp_path / "model.onnx"
    export_network(network, (1, 8, 8), ExportOptions(opset=opset)).save(path, {})
    assert f"opset ai.onnx {opset}" in check_onnx(path)
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert ("GroupNormalization" in kinds, "RMSNormalization" in kinds) == (opset >= 21, opset >= 23)
    session = open_cpu_session(path)
    assert all(entry.ok for entry in check_seeded("dense", network, session, (1, 8, 8), (1, 3), output_names(session)))


def test_an_operator_that_the_opset_lacks_is_named() -> None:
    with pytest.raises(ExportError, match=r"opset 18 does not have DeformConv, which the network needs: give a newer"):
        export_network(_Deformed().eval(), (1, 8, 8), ExportOptions(opset=18))
    assert export_network(_Deformed().eval(), (1, 8, 8), ExportOptions(opset=19)).options.opset == 19


def test_above_what_is_converted_an_opset_is_raised_only_where_no_operator_changes() -> None:
    model = _model("Relu", CONVERTED)
    raise_opset(model, 28)
    assert model.opset_imports[""] == 28
    with pytest.raises(
        ExportError, match="in opset 25 and does not convert it to 28, and in opset 28 Cast changed: give"
    ):
        raise_opset(_model("Cast", CONVERTED), 28)
    with pytest.raises(ExportError, match="in opset 18 and does not convert it to 22: give `opset=18`"):
        raise_opset(_model("Add", 18), 22)


def test_the_newest_is_one_that_onnx_runtime_opens_and_says_nothing_of(capfd: pytest.CaptureFixture[str]) -> None:
    newest_opset.cache_clear()
    assert 18 < newest_opset() <= onnx.defs.onnx_opset_version()
    assert capfd.readouterr() == ("", "")
