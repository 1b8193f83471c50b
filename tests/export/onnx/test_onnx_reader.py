"""ONNX files from strangers: what could hang, crash or reach outside is refused before a session is opened."""

from __future__ import annotations

import mmap
import os
import resource
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import psutil
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from pruneport.bench.latency.sessions import open_session
from pruneport.bench.options import BenchOptions
from pruneport.errors import ExportError, ModelError, ProviderError
from pruneport.export.cpu_session import open_cpu_session
from pruneport.export.onnx.memory import within_free_memory
from pruneport.export.onnx.onnx_file import check_onnx
from pruneport.export.onnx.onnx_reader import read_onnx
from pruneport.export.parity import check_seeded

_NO_RESERVE = 0x4000  # Linux's MAP_NORESERVE: addresses alone
IMAGE = ["batch", 1, 8, 8]
node = helper.make_node


def model(
    nodes: Sequence[onnx.NodeProto], *weights: onnx.TensorProto, functions: Sequence[Any] = ()
) -> onnx.ModelProto:
    """Images to one output; ``weights`` have names."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, IMAGE) for name in ("input", "output")]
    opsets = [helper.make_opsetid(domain, version) for domain, version in (("", 20), ("stranger", 1))]
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=functions)


def constant(name: str, value: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value), name)


def _body(*names: str) -> onnx.GraphProto:
    """Passes a condition, and an image, on."""
    kinds = [TensorProto.BOOL, TensorProto.FLOAT]
    took = [helper.make_tensor_value_info(name, kind, None) for name, kind in zip(names, kinds, strict=True)]
    gave = [helper.make_tensor_value_info(f"{name}_out", kind, None) for name, kind in zip(names, kinds, strict=True)]
    turn = helper.make_tensor_value_info("turn", TensorProto.INT64, [])
    return helper.make_graph([node("Identity", [n], [f"{n}_out"]) for n in names], "body", [turn, *took], gave)


def _loop() -> onnx.ModelProto:
    return model([node("Loop", ["", "go_on", "input"], ["output"], body=_body("on", "image"))], constant("go_on", True))


def _branch() -> onnx.ModelProto:
    value = helper.make_tensor_value_info("result", TensorProto.FLOAT, None)
    ways = [helper.make_graph([node(kind, ["input"], ["result"])], kind, [], [value]) for kind in ("Relu", "Abs")]
    return model([node("If", ["yes"], ["output"], then_branch=ways[0], else_branch=ways[1])], constant("yes", True))


def _doubling() -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("stranger", 1)]

    def twice(level: int) -> onnx.FunctionProto:
        kind, domain = (f"f{level - 1}", "stranger") if level else ("Relu", "")
        calls = [node(kind, ["x"], ["m"], domain=domain), node(kind, ["m"], ["y"], domain=domain)]
        return helper.make_function("stranger", f"f{level}", ["x"], ["y"], calls, opsets)

    return model([node("f40", ["input"], ["output"], domain="stranger")], functions=[twice(i) for i in range(41)])


def _whole(kind: str, divisor: int) -> onnx.ModelProto:
    """The lowest whole number, made of the image, divided."""
    steps = [
        node("Cast", ["input"], ["image"], to=TensorProto.INT64),
        node("Mul", ["image", "zero"], ["zeros"]),
        node("Add", ["zeros", "low"], ["lows"]),
        node(kind, ["lows", "divisor"], ["divided"]),
        node("Cast", ["divided"], ["output"], to=TensorProto.FLOAT),
    ]
    return model(steps, constant("zero", 0), constant("low", -(2**63)), constant("divisor", divisor))


def _whole_by_batch() -> onnx.ModelProto:
    steps = [
        node("Shape", ["input"], ["sizes"]),
        node("Gather", ["sizes", "first"], ["batch"], axis=0),
        node("Cast", ["input"], ["whole"], to=TensorProto.INT64),
        node("Div", ["whole", "batch"], ["shares"]),
        node("Cast", ["shares"], ["output"], to=TensorProto.FLOAT),
    ]
    return model(steps, constant("first", 0))


def _whole_by_image() -> onnx.ModelProto:
    steps = [
        node("Cast", ["input"], ["whole"], to=TensorProto.INT32),
        node("Div", ["whole", "whole"], ["ones"]),
        node("Cast", ["ones"], ["output"], to=TensorProto.FLOAT),
    ]
    return model(steps)


def _sparse() -> onnx.ModelProto:
    made = model([node("Add", ["input", "weight"], ["output"])])
    values, places = helper.make_tensor("weight", 1, [1], [1.0]), helper.make_tensor("places", 7, [1], [0])
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [10**12]))
    return made


def _strings() -> onnx.ModelProto:
    steps = [node("Cast", ["input"], ["s0"], to=TensorProto.STRING)]
    steps += [node("StringConcat", [f"s{i}"] * 2, [f"s{i + 1}"]) for i in range(40)]
    return model([*steps, node("Cast", ["s40"], ["output"], to=TensorProto.FLOAT)])


def _sequence() -> onnx.ModelProto:
    return model([node("SequenceConstruct", ["input"], ["s"]), node("ConcatFromSequence", ["s"], ["output"], axis=0)])


def _outside(location: str, **place: object) -> onnx.ModelProto:
    weight = TensorProto(name="weight", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **place}.items():
        weight.external_data.add(key=key, value=str(value))
    return model([node("Add", ["input", "weight"], ["output"])], weight)


def _long() -> onnx.ModelProto:
    chain = [node("Relu", [f"r{i}"], [f"r{i + 1}"]) for i in range(50_000)]
    return model([node("Relu", ["input"], ["r0"]), *chain, node("Relu", ["r50000"], ["output"])])


REFUSED: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "loop without end": (_loop, "a graph inside Loop"),
    "branch": (_branch, "a graph inside If"),
    "functions that double": (_doubling, "41 functions; the operator stranger.f40"),
    "operator of another domain": (
        lambda: model([node("Gelu", ["input"], ["output"], domain="com.microsoft")]),
        "the operator com.microsoft.Gelu",
    ),
    "lowest by -1": (lambda: _whole("Div", -1), "a division of whole numbers by what may be 0 or -1 (Div divided)"),
    "by zero": (lambda: _whole("Div", 0), "what may be 0 or -1 (Div"),
    "rest by zero": (lambda: _whole("Mod", 0), "what may be 0 or -1 (Mod"),
    "by the image": (_whole_by_image, "what may be 0 or -1 (Div ones)"),
    "sparse": (_sparse, "sparse weights"),
    "strings": (_strings, "strings; the operator StringConcat"),
    "sequence": (_sequence, "the operator SequenceConstruct"),
    "many nodes": (_long, "50002 nodes"),
    "weights of another file": (lambda: _outside("/etc/passwd"), "weights in '/etc/passwd', which is no file model"),
    "weights above": (lambda: _outside("../model.onnx.data"), "weights in '../model.onnx.data', which is no"),
    "weights beyond the end": (
        lambda: _outside("model.onnx.data", offset=2, length=4),
        "beyond the end of model.onnx.d",
    ),
    "weights before the start": (
        lambda: _outside("model.onnx.data", offset=-1, length=1),
        "beyond the end of model.on",
    ),
    "weights at a word": (lambda: _outside("model.onnx.data", offset="x"), "weights beyond the end of model.onnx.data"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_no_export_has(kind: str, tmp_path: Path) -> None:
    make, said = REFUSED[kind]
    path = tmp_path / "model.onnx"
    onnx.save(make(), path)
    (tmp_path / "model.onnx.data").write_bytes(bytes(4))
    ways: list[Callable[[], object]] = [
        lambda: check_onnx(path),
        lambda: open_cpu_session(path),
        lambda: open_session(path, BenchOptions(), batch=1),
    ]
    for way in ways:
        with pytest.raises(ModelError) as caught:
            way()
        assert f"{path} is not opened, since no export of pruneport has such parts: " in str(caught.value)
        assert said in str(caught.value)


@pytest.mark.parametrize("linked", ["model", "weights"])
def test_links_of_weights_and_pipes(linked: str, tmp_path: Path) -> None:
    path, data = tmp_path / "model.onnx", tmp_path / "model.onnx.data"
    if linked == "weights":
        onnx.save(_outside(data.name), path)
        (tmp_path / "secret").write_bytes(bytes(4))
        data.symlink_to("secret")
        with pytest.raises(ModelError, match=r"which is no file model\.onnx\.data beside it"):
            read_onnx(path)
    else:
        os.mkfifo(path)
        with pytest.raises(ModelError, match=r"There is no ONNX file .*: it is a named pipe"):
            read_onnx(path)


def test_what_exports_have(digits_onnx: Path, tmp_path: Path) -> None:
    read_onnx(digits_onnx)
    allowed = {
        "image by image": model([node("Div", ["input", "input"], ["output"])]),
        "by a constant": model([node("Div", ["input", "c"], ["output"])], constant("c", np.float32(0))),
        "whole by the batch size": _whole_by_batch(),
        "whole by a constant": _whole("Div", 3),
        "weights beside it": _outside("model.onnx.data", offset=0, length=4),
    }
    for made in allowed.values():
        onnx.save(made, tmp_path / "model.onnx")
        (tmp_path / "model.onnx.data").write_bytes(np.float32(1).tobytes())
        session = open_cpu_session(tmp_path / "model.onnx")
        session.run(None, {"input": np.ones((2, 1, 8, 8), np.float32)})


def test_what_onnx_runtime_raises_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(model([node("NoSuchOperator", ["input"], ["output"])]), path)
    with pytest.raises(ExportError, match=r"ONNX Runtime cannot open .*model\.onnx: .*NoSuchOperator"):
        open_cpu_session(path)
    onnx.save(model([node("Gather", ["input", "far"], ["output"], axis=3)], constant("far", [1000])), path)
    with pytest.raises(ExportError, match="does not run on inputs of shape"):
        check_seeded("dense", torch.nn.Identity(), open_cpu_session(path), (1, 8, 8), (1,))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux limits what a process asks for")
def test_more_memory_than_is_free() -> None:
    before, flags = resource.getrlimit(resource.RLIMIT_DATA), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
    size = psutil.virtual_memory().available + psutil.swap_memory().free + 4 * 2**30
    mmap.mmap(-1, size, flags=flags).close()  # never touched
    with within_free_memory():
        mmap.mmap(-1, 2**20, flags=flags).close()
        with pytest.raises(OSError, match="Cannot allocate memory"):
            mmap.mmap(-1, size, flags=flags)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux limits what a process asks for")
def test_a_file_that_asks_for_more_memory_than_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for asked in ("virtual_memory", "swap_memory"):  # a machine with 1 GiB left
        monkeypatch.setattr(psutil, asked, lambda: SimpleNamespace(available=2**30, free=0))
    path = tmp_path / "model.onnx"
    steps = [
        node("ConstantOfShape", ["size"], ["many"]),
        node("ReduceSum", ["many"], ["sum"], keepdims=0),
        node("Add", ["input", "sum"], ["output"]),
    ]
    onnx.save(model(steps, constant("size", [2**29])), path)
    with pytest.raises(ExportError, match="Failed to allocate memory for requested buffer of size 2147483648"):
        check_seeded("dense", torch.nn.Identity(), open_cpu_session(path), (1, 8, 8), (1,))
    with pytest.raises((ModelError, ProviderError), match="Failed to allocate memory"):
        open_session(path, BenchOptions(), batch=1).bind(np.ones((1, 1, 8, 8), np.float32))
