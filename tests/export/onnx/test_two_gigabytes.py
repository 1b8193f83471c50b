"""A real file above what protobuf holds: its weights go beside it by themselves, and ONNX Runtime computes the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from pruneport.export.cpu_session import open_cpu_session, output_names
from pruneport.export.onnx.exporter import export_network
from pruneport.export.onnx.onnx_file import check_onnx, read_metadata
from pruneport.export.parity import check_seeded

_SHAPE, _WIDTH = (1, 2900, 8), 23200  # one matrix of 538 million float32: more than 2 GiB, and one pass over them


@pytest.mark.slow
def test_a_network_of_more_than_two_gibibytes(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(_WIDTH, _WIDTH, bias=False, device="meta"), nn.Linear(_WIDTH, 10))
    weight = torch.full((_WIDTH, _WIDTH), 1e-3)  # in one piece: the default initialisation takes minutes
    weight[::100].normal_()
    network[1].weight = nn.Parameter(weight, requires_grad=False)
    network.eval()
    assert weight.nbytes > 2**31

    file = tmp_path / "model.onnx"
    export_network(network, _SHAPE).save(file, {"source": "users:build"})
    assert file.stat().st_size < 10_000
    assert (tmp_path / "model.onnx.data").stat().st_size > 2**31
    assert read_metadata(file)["source"] == "users:build"
    assert check_onnx(file).startswith("model.onnx: ")
    session = open_cpu_session(file)
    (parity,) = check_seeded("dense", network, session, _SHAPE, [1], output_names(session))
    assert (parity.ok, parity.constant) == (True, False)
    (tmp_path / "model.onnx.data").unlink()  # pytest keeps the folder of the last runs
