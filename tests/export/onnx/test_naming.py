"""Names in ONNX files: nodes after their modules, inputs and outputs as asked for, weights out of their way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from pruneport.export.onnx.exporter import export_network
from pruneport.export.onnx.onnx_file import read_metadata
from pruneport.export.options import ExportOptions
from pruneport.export.parity import check_seeded, open_cpu_session, output_names


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x + self.act(self.norm(self.conv(x))))


class _Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(1, 4, 1)
        self.blocks = nn.Sequential(_Block(), _Block())
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Any:
        features = self.blocks(self.stem(x))
        return {"logits": self.head(features.mean((2, 3))), "maps": features}


def test_nodes_keep_the_module_path(tmp_path: Path) -> None:
    export_network(_Network().eval(), (1, 6, 6)).save(tmp_path / "model.onnx", {})
    names = [node.name for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert len(set(names)) == len(names)
    assert names == [
        "stem/Conv",
        "blocks.0.conv/Conv",
        "blocks.0.act/Relu",
        "blocks.0/Add",
        "blocks.0.act/Relu_1",
        "blocks.1.conv/Conv",
        "blocks.1.act/Relu",
        "blocks.1/Add",
        "blocks.1.act/Relu_1",
        "ReduceMean",
        "head/Gemm",
    ]


def test_names_asked_for_are_those_of_the_file_and_compared_as_torchs(tmp_path: Path) -> None:
    network, path = _Network().eval(), tmp_path / "model.onnx"
    asked = ExportOptions(input_names=("pixels",), output_names=("head.weight", "logits"))  # a weight's; another's
    export_network(network, (1, 6, 6), asked).save(path, {})
    session = open_cpu_session(path)
    assert [value.name for value in session.get_inputs()] == ["pixels"]
    assert [value.name for value in session.get_outputs()] == ["head.weight", "logits"]
    assert read_metadata(path) == {"outputs": '["logits", "maps"]', "output_names": '["head.weight", "logits"]'}
    assert output_names(session) == ("logits", "maps")
    assert all(entry.ok for entry in check_seeded("dense", network, session, (1, 6, 6), (1, 3), output_names(session)))


def test_outputs_that_were_renamed_by_someone_else_do_not_pass_as_torchs(tmp_path: Path) -> None:
    network, path = _Network().eval(), tmp_path / "model.onnx"
    for asked, names in ((ExportOptions(), ["maps", "logits"]), (ExportOptions(output_names=("a", "b")), ["b", "a"])):
        export_network(network, (1, 6, 6), asked).save(path, {})
        model = onnx.load(path)
        swap = dict(zip([output.name for output in model.graph.output], names, strict=True))
        for node in model.graph.node:
            for place, name in enumerate(node.output):
                node.output[place] = swap.get(name, name)
            for place, name in enumerate(node.input):
                node.input[place] = swap.get(name, name)
        for output in model.graph.output:
            output.name = swap[output.name]
        onnx.save(model, path)
        session = open_cpu_session(path)
        assert not check_seeded("dense", network, session, (1, 6, 6), (2,), output_names(session))[0].ok
