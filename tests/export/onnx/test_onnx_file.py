"""ONNX files: any batch, described inside, and nothing of the machine that wrote them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pruneport
from pruneport.errors import ExportError, ModelError
from pruneport.export.cpu_session import open_cpu_session
from pruneport.export.onnx.onnx_file import check_onnx, read_metadata, write_onnx


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_any_batch_runs(batch: int, digits: Any, digits_onnx: Path) -> None:
    inputs = torch.randn(batch, 1, 8, 8)
    (outputs,) = open_cpu_session(digits_onnx).run(None, {"input": inputs.numpy()})
    with torch.inference_mode():
        expected = digits.pruned.network(inputs).numpy()
    assert outputs.shape == (batch, 10)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)


def test_the_batch_is_the_only_free_dimension(digits_onnx: Path) -> None:
    (value,) = onnx.load(digits_onnx).graph.input
    dims = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
    assert value.name == "input"
    assert isinstance(dims[0], str)
    assert dims[1:] == [1, 8, 8]


def test_the_file_says_what_it_is(digits_onnx: Path) -> None:
    assert read_metadata(digits_onnx) == {
        "source": "pruneport:digits_resnet",
        "macs": "7",
        "outputs": '["output"]',
    }
    stored = {entry.key for entry in onnx.load(digits_onnx).metadata_props}
    assert stored >= {"pruneport.source", "pruneport.macs"}


def test_nothing_of_this_machine_is_inside(digits_onnx: Path) -> None:
    content = digits_onnx.read_bytes()
    root = Path(pruneport.__file__).resolve().parents[2]
    for secret in (b"site-packages", b"stack_trace", b'File "', b".py", str(root).encode(), str(Path.home()).encode()):
        assert secret not in content


def test_a_valid_file_is_described(digits_onnx: Path) -> None:
    assert check_onnx(digits_onnx).startswith("model.onnx: ")
    assert "opset ai.onnx" in check_onnx(digits_onnx)


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "graph"])
def test_a_damaged_file_is_refused(damage: str, digits_onnx: Path, tmp_path: Path) -> None:
    path, content = tmp_path / "model.onnx", digits_onnx.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "text": b"not ONNX"}.get(damage, content))
    if damage == "graph":
        model = onnx.load(path)
        del model.graph.node[1]
        onnx.save(model, path)
    with pytest.raises(
        (ExportError, ModelError), match=r"(?s)model\.onnx is not (valid|an) ONNX.*: .* Export it again"
    ):
        check_onnx(path)


class _DependsOnValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y if bool(y.mean() > 0) else -y


class _FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.ones(2, 1, 8, 8)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            _DependsOnValues(),
            "cannot export _DependsOnValues with a dynamic batch: .* Make its forward free of control",
        ),
        (_FixedBatch(), "exports _FixedBatch for a batch of 2 only: its forward turns the batch size into a number"),
    ],
)
def test_a_network_that_cannot_be_expressed_is_refused(
    network: nn.Module, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ExportError, match=message):
        write_onnx(network.eval(), (1, 8, 8), tmp_path / "model.onnx", {})
    assert list(tmp_path.iterdir()) == []
    assert logging.root.manager.disable == 0
    assert capfd.readouterr() == ("", "")


def test_exporting_leaves_the_network_as_it_was(digits: Any, tmp_path: Path, same: Any) -> None:
    network = digits.pruned.network
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    random = torch.get_rng_state()
    write_onnx(network, (1, 8, 8), tmp_path / "model.onnx", {})
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not network.training


class _Masked(nn.Module):
    """Attention without heads (``rank`` 3), with them (4) or in windows (5), and a mask made from its queries."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.qkv = nn.Linear(8, 24)
        self.places = nn.Parameter(torch.randn(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.reshape(-1, 2, 2, 4, 8)).chunk(3, dim=-1)
        if self.rank == 3:
            q, k, v = (part.flatten(0, 2) for part in (q, k, v))
        elif self.rank == 4:
            q, k, v = (part.flatten(0, 1) for part in (q, k, v))
        mask = q @ self.places.T
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, :1] if self.rank == 5 else mask).flatten(1)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [3, 4, 5])
def test_attention_with_a_mask_of_any_dimensions_is_exported(rank: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, path = _Masked(rank).eval(), tmp_path / "model.onnx"
    write_onnx(network, (2, 8, 8), path, {})
    for batch in (1, 3):
        inputs = torch.randn(batch, 2, 8, 8)
        (outputs,) = open_cpu_session(path).run(None, {"input": inputs.numpy()})
        with torch.inference_mode():
            np.testing.assert_allclose(outputs, network(inputs).numpy(), rtol=1e-4, atol=1e-5)


def test_zeros_around_negative_values_are_the_largest(tmp_path: Path) -> None:
    """ONNX Runtime moves a padding into the pooling after it, where it is never the largest."""
    network, path = nn.Sequential(nn.ZeroPad2d(1), nn.MaxPool2d(3, 2)).eval(), tmp_path / "model.onnx"
    write_onnx(network, (2, 9, 9), path, {})
    inputs = torch.randn(3, 2, 9, 9) - 3
    (outputs,) = open_cpu_session(path).run(None, {"input": inputs.numpy()})
    np.testing.assert_array_equal(outputs, network(inputs).numpy())
