"""Exporting networks whatever their forward takes and returns: outputs by name, any batch or one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from pruneport.bench.latency.sessions import open_session
from pruneport.bench.options import BenchOptions
from pruneport.errors import ExportError, InputError, ModelError
from pruneport.export.cpu_session import fixed_batch, open_cpu_session, output_names
from pruneport.export.onnx.exporter import export_network
from pruneport.export.onnx.form import check_form
from pruneport.export.onnx.onnx_file import check_onnx, read_metadata
from pruneport.export.options import ExportOptions
from pruneport.export.parity import check_other_batches, check_seeded
from pruneport.models.outputs import read_outputs

SHAPE = (1, 6, 6)


@dataclasses.dataclass
class Scores:
    logits: Tensor
    count: int
    features: Any


class Pair(NamedTuple):
    logits: Tensor
    more: Any


class Network(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.conv, self.head = kind, nn.Conv2d(1, 4, 3), nn.Linear(4, 3)
        self.register_buffer("steps", torch.arange(3.0))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        x = args[0]
        features = self.conv(x)
        logits = self.head(features.mean((2, 3)))
        kinds: dict[str, Any] = {
            "arguments": lambda: logits,
            "pair": lambda: Pair(logits, (features, x.shape[0])),
            "dataclass": lambda: Scores(logits, 3, {"maps": [features, None, 0.5]}),
            "classes alone": lambda: logits.argmax(1),
            "input alone": lambda: x,
            "everything": lambda: {
                "number": logits.mean(),
                "classes": logits.argmax(1),
                "scores": Scores(logits, 3, {"maps": [features, None, 0.5]}),
                "top": logits.topk(2, 1),
                "sure": logits > 0,
                "again": logits,
                "views": (logits[:], logits.view(-1), logits.detach()),
                "input": x,
                "nothing": logits[:, :0],
                "steps": (self.steps, self.steps),
                "conv.weight": self.conv.weight,
                "linear": features,  # names that torch's exporter gives to others
                "conv2d": logits * 2,
                "small": ((logits > 0).to(torch.uint8), logits.argmax(1).int()),
                "double": logits.double(),
                "where": (logits > 0).nonzero(),
                "infinite": logits.masked_fill(torch.arange(3) == 1, -torch.inf),
            },
            "sixteen bits": lambda: logits.bfloat16(),
            "complex": lambda: torch.fft.fft(logits),
            "nothing": lambda: 3,
            "one by one": lambda: [{"scores": row} for row in logits],
            "single": lambda: self.head(features.mean((2, 3)).reshape(1, 4)),
            "by value": lambda: logits if bool(logits.mean() > 0) else -logits,
            "as a number": lambda: logits + torch.arange(float(int(x.shape[0])))[:, None],
        }
        return kinds[self.kind]()


OUTPUTS = {
    "arguments": ["output"],
    "pair": ["logits", "more.0"],
    "dataclass": ["logits", "features.maps.0"],
    "classes alone": ["output"],
    "input alone": ["output"],
    "everything": [
        *("number", "classes", "scores.logits", "scores.features.maps.0", "top.values", "top.indices", "sure", "again"),
        *("views.0", "views.1", "views.2", "input.2", "nothing", "steps.0", "steps.1", "conv.weight", "linear"),
        *("conv2d", "small.0", "small.1", "double", "where", "infinite"),
    ],
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_every_output_is_exported_compared_and_timed(kind: str, tmp_path: Path) -> None:
    network, path = Network(kind).eval(), tmp_path / "model.onnx"
    export_network(network, SHAPE).save(path, {})
    check_onnx(path)
    session = open_cpu_session(path)
    weights = {entry.name for entry in onnx.load(path).graph.initializer}
    assert {"conv.bias", "head.weight"} <= weights or kind == "input alone"  # conv.weight may be an output's name
    assert [output.name for output in session.get_outputs()] == list(output_names(session) or ()) == OUTPUTS[kind]
    results = check_seeded("dense", network, session, SHAPE, (1, 4), output_names(session))
    assert [(entry.ok, entry.fault) for entry in results] == [(True, "")] * 2
    images = np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float32)
    run = open_session(path, BenchOptions(threads=1), batch=2).bind(images)
    run.run()
    with torch.inference_mode():
        wanted = read_outputs(network(torch.from_numpy(images))).tensors.values()
    for ours, theirs in zip(run.outputs(), wanted, strict=True):
        np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_what_is_no_tensor_is_left_out_and_said(tmp_path: Path) -> None:
    exported = export_network(Network("dataclass").eval(), SHAPE)
    exported.save(tmp_path / "model.onnx", {"macs": "7"})
    assert exported.left_out == {"count": "int", "features.maps.2": "float"}
    assert read_metadata(tmp_path / "model.onnx") == {
        "macs": "7",
        "outputs": '["logits", "features.maps.0"]',
        "left_out": "count (int), features.maps.2 (float)",
    }
    assert check_onnx(tmp_path / "model.onnx").endswith(
        "outputs logits, features.maps.0; besides these torch returns count (int), features.maps.2 (float)"
    )


@pytest.mark.parametrize(
    ("kind", "batch", "message"),
    [
        ("sixteen bits", None, r"outputs output \(bfloat16\) have types that ONNX Runtime does not give back"),
        ("complex", None, r"outputs output \(complex64\) have types"),
        ("nothing", None, r"^the network returns no tensor, but output \(int\); expected at least one\.$"),
        (
            "one by one",
            None,
            r"returns output\.0\.scores for one image and output\.0\.scores, output\.1\.scores for two",
        ),
        ("single", None, "takes one image at a time: .* `batch_size_fixed=1`"),
        ("single", 4, "takes one image at a time, not 4: give `batch_size_fixed=1`"),
        ("by value", None, r"with a dynamic batch: .* as Python numbers\.$"),  # nor for one batch, so that is not said
        ("by value", 2, "cannot export Network for a batch of 2: .* control flow that depends on values"),
        ("as a number", None, "for a batch of 2 only: .* with `batch_size_fixed=N`"),
    ],
)
def test_what_cannot_be_exported_is_named_with_what_to_do(kind: str, batch: int | None, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        export_network(Network(kind).eval(), SHAPE, ExportOptions(batch_size_fixed=batch))


@pytest.mark.parametrize(("kind", "batch"), [("single", 1), ("as a number", 4), ("one by one", 3), ("arguments", 1)])
def test_a_fixed_batch_is_exported_and_found_again(kind: str, batch: int, tmp_path: Path) -> None:
    network, path = Network(kind).eval(), tmp_path / "model.onnx"
    exported = export_network(network, SHAPE, ExportOptions(batch_size_fixed=batch))
    exported.save(path, {})
    session = open_cpu_session(path)
    assert exported.batch == fixed_batch(session) == int(read_metadata(path)["batch_size_fixed"]) == batch
    assert all(entry.ok for entry in check_seeded("dense", network, session, SHAPE, (batch,), output_names(session)))


class _PinnedWhenDynamic(nn.Module):
    """Runs on any batch; torch cannot export it with a dynamic one."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x[place] * place for place in range(x.shape[0])]) if x.shape[0] < 5 else x


def test_a_fixed_batch_is_offered_where_it_was_tried_and_works() -> None:
    with pytest.raises(ExportError, match="`batch_size_fixed=N`"):
        export_network(_PinnedWhenDynamic(), SHAPE)
    assert export_network(_PinnedWhenDynamic(), SHAPE, ExportOptions(batch_size_fixed=3)).batch == 3


def test_batches_that_are_none() -> None:
    with pytest.raises(InputError, match="`batch_size_fixed` is 0; expected at least 1"):
        check_form(ExportOptions(batch_size_fixed=0))


class _OfOneSize(nn.Module):
    """Takes images of one size, or any and turns their height into a number."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.conv = kind, nn.Conv2d(1, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "fixed":
            return self.conv(x) + torch.zeros(4, 4)
        return self.conv(x).flatten(1) if x.shape[2] == 6 else self.conv(x)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "fixed",
            r"_OfOneSize takes images of 6 x 6 and not of 38 x 70: .*\. Its height and width are fixed: give `dyn",
        ),
        (
            "branch",
            "_OfOneSize for a height of 6 only: its forward turns the size of images .* or give `dynamic=batch`",
        ),
    ],
)
def test_a_size_that_the_network_fixes_is_named(kind: str, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        export_network(_OfOneSize(kind).eval(), SHAPE, ExportOptions(dynamic="batch,height,width"))


def test_open_sizes_are_exported_compared_at_two_sizes_and_timed_at_the_examples(tmp_path: Path) -> None:
    network, path = Network("pair").eval(), tmp_path / "model.onnx"
    exported = export_network(network, SHAPE, ExportOptions(dynamic="batch,height,width"))
    check_other_batches(network, exported, SHAPE)
    exported.save(path, {})
    session = open_cpu_session(path)
    assert session.get_inputs()[0].shape == ["batch", 1, "height", "width"]
    for shape in (SHAPE, (1, 38, 70), (1, 7, 11)):
        assert all(e.ok for e in check_seeded("dense", network, session, shape, (1, 3), output_names(session)))
    timed = open_session(path, BenchOptions(threads=1), batch=2)
    assert (timed.inputs.inputs[0].shape, timed.inputs.inputs[0].open_sizes) == (SHAPE, {"height": 6, "width": 6})
    assert timed.settings["image_shape"] == [1, 6, 6]
    timed.bind(np.zeros((2, *SHAPE), np.float32)).run()
    onnx.shape_inference.infer_shapes(onnx.load(path), check_type=True, strict_mode=True, data_prop=True)


def test_a_file_that_is_right_at_one_size_alone_is_refused() -> None:
    network = nn.Conv2d(1, 2, 3).eval()
    exported = export_network(network, SHAPE, ExportOptions(dynamic="batch,height,width"))
    network.register_forward_hook(lambda *args: args[2] * (1 if args[1][0].shape[2] == 6 else 2))
    with pytest.raises(ExportError, match=r"right for images of 6 x 6 alone, .* At 38 x 70: output differs by"):
        check_other_batches(network, exported, SHAPE)


def test_weights_go_to_a_file_beside_where_asked_for_or_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class _Shares(nn.Module):
        """Divides whole numbers by a table of them, which is large enough to lie in the file beside."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 32, 3)
            self.register_buffer("table", torch.arange(1, 513).reshape(32, 4, 4))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            maps = self.conv(x)
            return maps, torch.div((maps * 1000).round().long(), self.table, rounding_mode="floor")

    network = _Shares().eval()
    for name, options, limit in (("asked", ExportOptions(external_data=True), 10**9), ("large", ExportOptions(), 100)):
        path = tmp_path / f"{name}.onnx"
        monkeypatch.setattr("pruneport.export.onnx.onnx_network._INLINE_LIMIT_BYTES", limit)
        export_network(network, SHAPE, options).save(path, {})
        data = path.with_name(f"{name}.onnx.data")
        assert data.stat().st_size >= 32 * 9 * 4
        check_onnx(path)
        session = open_cpu_session(path)
        assert check_seeded("dense", network, session, SHAPE, (2,), output_names(session))[0].ok
        open_session(path, BenchOptions(threads=1), batch=2).bind(np.zeros((2, *SHAPE), np.float32)).run()
        data.unlink()
        with pytest.raises(ModelError, match=rf"which is no file {name}\.onnx\.data beside it"):
            check_onnx(path)
