from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto

from gpu_stand_ins import GpuRuntime
from pruneport.bench.devices import available_cores
from pruneport.bench.latency import sessions
from pruneport.bench.latency.onnx_input import NetworkInput, read_inputs
from pruneport.bench.latency.providers import PROVIDERS, TF32
from pruneport.bench.latency.sessions import open_session
from pruneport.bench.options import BenchOptions
from pruneport.errors import InputError, ModelError, ProviderError

CPU = BenchOptions(threads=1)
CUDA = BenchOptions(provider="cuda")
Make = Callable[..., Path]

without_a_gpu = pytest.mark.skipif(
    "CUDAExecutionProvider" not in ort.get_available_providers() or Path("/dev/nvidia0").exists(),
    reason="needs an ONNX Runtime built for CUDA on a machine that has none",
)


def _images(*shape: int) -> Any:
    return np.random.default_rng(1).standard_normal(shape, dtype=np.float32)


def test_input_is_read(make_network: Make) -> None:
    found = read_inputs(make_network())
    assert found.inputs == (NetworkInput(name="images", batch="batch", shape=(3, 8, 8), dtype=np.dtype(np.float32)),)
    assert found.batch == "batch"
    assert read_inputs(make_network(batch=4)).batch == 4
    assert read_inputs(make_network(batch=None)).batch == ""
    assert read_inputs(make_network(dtype=TensorProto.FLOAT16)).inputs[0].dtype == np.float16


def test_weights_listed_as_inputs_are_no_inputs(make_network: Make) -> None:
    path = make_network()
    model = onnx.load(path)
    model.graph.input.append(onnx.helper.make_tensor_value_info("weight", TensorProto.FLOAT, [8, 3, 3, 3]))
    onnx.save(model, path)
    assert [entry.name for entry in read_inputs(path).inputs] == ["images"]


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no ONNX file .*nothing\.onnx"):
        open_session(tmp_path / "nothing.onnx", CPU)


@pytest.mark.parametrize("content", [b"this is text", b""])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "text.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"text\.onnx (is not an ONNX file|must take .* it takes no input)"):
        open_session(path, CPU)


@pytest.mark.parametrize(
    "change",
    [{"image": (3, "height", 8)}, {"image": (3, 2**20, 2**20)}, {"image": (0, 8, 8)}, {"dtype": TensorProto.BFLOAT16}],
)
def test_inputs_of_open_sizes_and_other_types_are_refused(make_network: Make, change: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"tensors of numbers, one batch of each, .*; it takes images \['batch'"):
        read_inputs(make_network(**change))


_KINDS = {
    "floats": TensorProto.FLOAT,
    "halves": TensorProto.FLOAT16,
    "pixels": TensorProto.UINT8,
    "tokens": TensorProto.INT64,
    "places": TensorProto.INT32,
    "mask": TensorProto.BOOL,
}


def test_several_inputs_of_any_type_are_read_and_run(make_several: Make) -> None:
    inputs = {name: (kind, ["batch", 64]) for name, kind in _KINDS.items()}
    inputs |= {"scale": (TensorProto.FLOAT, []), "table": (TensorProto.INT64, [7]), "each": (TensorProto.FLOAT, ["n"])}
    path = make_several(
        "several",
        inputs,
        {"tokens": [3, 900], "mask": [5, 6], "places": [0, 2**40], "scale": [0.5, 0.5], "halves": [2, 1]},
    )
    session = open_session(path, CPU, batch=4)
    found = {entry.name: entry for entry in session.inputs.inputs}
    assert [found[name].batch for name in ("floats", "scale", "table", "each")] == ["batch", None, None, "n"]
    values = [found[name].values for name in ("tokens", "mask", "places", "scale", "halves")]
    assert values == [(3, 900), None, None, (0.5, 0.5), None]
    drawn = dict(zip(found, session.inputs.drawn(4, 0), strict=True))
    assert {name: array.shape for name, array in drawn.items()} == {
        **dict.fromkeys(_KINDS, (4, 64)),
        **{"scale": (), "table": (7,), "each": (4,)},
    }
    assert all(drawn[name].dtype == onnx.helper.tensor_dtype_to_np_dtype(kind) for name, kind in _KINDS.items())
    extremes = {name: (int(drawn[name].min()), int(drawn[name].max())) for name in ("pixels", "tokens", "places")}
    assert extremes["pixels"][0] < 20 < 240 < extremes["pixels"][1]
    assert 3 <= extremes["tokens"][0] < 100 < 800 < extremes["tokens"][1] <= 900, "what the file says"
    assert extremes["places"] == (0, 0), "in range of any table"
    assert set(drawn["mask"].ravel()) == {False, True}
    assert drawn["scale"] == 0.5
    bound = session.bind(*drawn.values())
    bound.run()
    outputs = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, drawn)
    for ours, plain in zip(bound.outputs(), outputs, strict=True):
        np.testing.assert_array_equal(ours, plain)


def test_inputs_that_all_have_a_fixed_batch_keep_it(make_several: Make) -> None:
    path = make_several("fixed", {"left": (TensorProto.FLOAT, [4, 3]), "right": (TensorProto.FLOAT, [2, 3])})
    session = open_session(path, CPU, batch=4)
    assert session.inputs.batch == 4
    assert [array.shape for array in session.inputs.drawn(4, 0)] == [(4, 3), (2, 3)]
    session.bind(*session.inputs.drawn(4, 0)).run()
    with pytest.raises(ModelError, match=r"fixed batch 4 and cannot run batch 3"):
        open_session(path, CPU, batch=3)


def test_network_that_onnx_runtime_refuses_is_named(make_network: Make) -> None:
    path = make_network()
    model = onnx.load(path)
    model.graph.node[1].op_type = "NoSuchOperator"
    onnx.save(model, path)
    with pytest.raises(ModelError, match=r"ONNX Runtime cannot load .*NoSuchOperator"):
        open_session(path, CPU)


@pytest.mark.parametrize("batch", ["batch", None, 2])
def test_bound_run_gives_what_a_plain_run_gives(make_network: Make, batch: int | str | None) -> None:
    path, images = make_network(batch=batch), _images(2, 3, 8, 8)
    session = open_session(path, CPU, batch=2)
    assert session.settings["batch_fixed_in_session"] == (batch == "batch"), "only a named batch can be fixed"
    bound = session.bind(images)
    bound.run()
    (expected,) = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"images": images})
    (features,) = bound.outputs()
    np.testing.assert_allclose(features, expected, rtol=1e-6)


def test_each_run_computes_into_the_same_memory(make_network: Make) -> None:
    images = _images(2, 3, 8, 8)
    bound = open_session(make_network(), CPU, batch=2).bind(images)
    address = bound._values[1].data_ptr()
    bound.run()
    (first,) = bound.outputs()
    assert np.array_equal(bound._values[1].numpy(), first)
    images[:] = 0  # on the CPU the bound input is this array
    bound.run()
    (second,) = bound.outputs()
    assert np.any(first)
    assert not np.any(second)
    assert bound._binding.get_outputs()[0].data_ptr() == address


def test_fixing_the_batch_folds_the_shape_arithmetic(make_network: Make) -> None:
    path = make_network()
    dynamic, fixed = open_session(path, CPU), open_session(path, CPU, batch=4)
    assert dynamic.placement == {"CPUExecutionProvider": 6}
    assert fixed.placement == {"CPUExecutionProvider": 4}, "Shape and Concat are constants"
    assert (dynamic.settings["batch_fixed_in_session"], fixed.settings["batch_fixed_in_session"]) == (
        False,
        True,
    )
    with pytest.raises(ProviderError, match=r"does not run on a batch of shape \(2, 3, 8, 8\)"):
        fixed.bind(_images(2, 3, 8, 8))


def test_a_batch_fixed_in_the_file_stays(make_network: Make) -> None:
    with pytest.raises(ModelError, match=r"fixed batch 2 and cannot run batch 3.*dynamic batch"):
        open_session(make_network(batch=2), CPU, batch=3)


def test_settings_on_the_cpu(make_network: Make) -> None:
    path = make_network()
    settings = open_session(path, replace(CPU, threads=2)).settings
    assert settings["intra_op_threads"] == 2
    assert settings["inter_op_threads"] == 1
    assert settings["graph_optimization_level"] == "ORT_ENABLE_ALL"
    assert settings["execution_mode"] == "ORT_SEQUENTIAL"
    assert settings["session_config"]["session.force_spinning_stop"] == "1"
    assert "session.disable_cpu_ep_fallback" not in settings["session_config"]
    assert settings["provider_options"] == {}
    assert open_session(path, BenchOptions()).settings["intra_op_threads"] == available_cores()


def test_session_runs_with_the_recorded_configuration(make_network: Make) -> None:
    session = open_session(make_network(), CPU)
    for key, value in session.settings["session_config"].items():
        assert session._ort.get_session_options().get_session_config_entry(key) == value


def test_provider_that_is_not_built_in(make_network: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    expected = r"'cuda' \(CUDAExecutionProvider\) is not in this .* has CPUExecutionProvider\. Install 'onnxrun"
    with pytest.raises(ProviderError, match=expected):
        open_session(make_network(), CUDA)


@without_a_gpu
@pytest.mark.usefixtures("own_tf32")
def test_cuda_without_a_gpu_is_an_error_and_not_the_cpu(make_network: Make, capfd: Any) -> None:
    with pytest.raises(ProviderError) as caught:
        open_session(make_network(), CUDA, batch=1)
    message = str(caught.value)
    assert message.startswith("CUDAExecutionProvider did not start, and ONNX Runtime would run everything on the CPU")
    assert "Install 'onnxruntime-gpu[cuda,cudnn]'" in message
    assert capfd.readouterr() == ("", ""), "what preload_dlls and ONNX Runtime print belongs in the message"


@without_a_gpu
@pytest.mark.usefixtures("own_tf32")
def test_tensorrt_without_a_gpu_is_an_error_and_not_the_cpu(make_network: Make, capfd: Any) -> None:
    if "TensorrtExecutionProvider" not in ort.get_available_providers():
        pytest.skip("this ONNX Runtime has no TensorRT")
    with pytest.raises(ProviderError, match=r"TensorrtExecutionProvider did not start: (.|\n)*'tensorrt-cu13>=10"):
        open_session(make_network(), BenchOptions(provider="tensorrt"), batch=1)
    assert capfd.readouterr() == ("", "")


def _pretend_cuda(monkeypatch: pytest.MonkeyPatch, placed: dict[str, str], error: str = "no") -> list[Any]:
    """A CUDA provider that refuses the strict session; without strictness nodes land as ``placed`` says."""
    asked: list[Any] = []

    def create(path: Path, options: BenchOptions, types: Any, fixed: Any, config: dict[str, str]) -> Any:
        asked.append((options, config))
        if "session.disable_cpu_ep_fallback" in config:
            raise RuntimeError(error)
        nodes = [
            SimpleNamespace(
                ep_name=name, get_nodes=lambda node=node: [SimpleNamespace(name=node, op_type=node.upper())]
            )
            for node, name in placed.items()
        ]
        return SimpleNamespace(
            get_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
            get_provider_graph_assignment_info=lambda: nodes,
        )

    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(ort, "preload_dlls", lambda: None)
    monkeypatch.setenv(TF32, "0")
    monkeypatch.setattr(sessions, "_create", create)
    return asked


def test_nodes_on_the_cpu_are_named(make_network: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    placed = {"conv": "CUDAExecutionProvider", "nms": "CPUExecutionProvider", "where": "CPUExecutionProvider"}
    asked = _pretend_cuda(monkeypatch, placed)
    with pytest.raises(ProviderError) as caught:
        open_session(make_network(), replace(CUDA, cuda_graph=True))
    message = str(caught.value)
    assert "2 nodes would run elsewhere, namely nms (NMS) on CPUExecutionProvider, where (WHERE) on CPU" in message
    assert "conv" not in message
    (strict, config), (lenient, _) = asked
    assert config["session.disable_cpu_ep_fallback"] == "1"
    assert (strict.cuda_graph, lenient.cuda_graph) == (True, False)


def test_a_long_list_of_nodes_is_cut(make_network: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend_cuda(monkeypatch, {f"n{index}": "CPUExecutionProvider" for index in range(23)})
    with pytest.raises(ProviderError, match=r"23 nodes would .* n19 \(N19\) on CPUExecutionProvider and 3 more\."):
        open_session(make_network(), CUDA)


def test_other_failures_keep_the_runtime_s_own_words(make_network: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend_cuda(monkeypatch, {"conv": "CUDAExecutionProvider"}, error="out of memory")
    with pytest.raises(ProviderError, match=r"CUDAExecutionProvider does not open .*dense\.onnx: out of memory"):
        open_session(make_network(), CUDA)


@pytest.fixture
def own_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is set in the environment is taken back."""
    monkeypatch.setenv(TF32, "")
    monkeypatch.delenv(TF32)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> GpuRuntime:
    return GpuRuntime.installed(monkeypatch)


_GPU_PROVIDERS = pytest.mark.parametrize("provider", ["cuda", "tensorrt"])


@_GPU_PROVIDERS
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_a_gpu_session_runs_bound_and_strict(
    make_network: Make, gpu: GpuRuntime, provider: Any, cuda_graph: bool
) -> None:
    session = open_session(make_network(), BenchOptions(provider=provider, cuda_graph=cuda_graph), batch=2)
    assert session.placement == {PROVIDERS[provider]: 4}
    bound = session.bind(_images(2, 3, 8, 8))
    bound.run()
    bound.check_replay()
    assert {config["session.disable_cpu_ep_fallback"] for _, _, config in gpu.opened} == {"1"}
    graphs = [options.get("enable_cuda_graph", options.get("trt_cuda_graph_enable")) for _, options, _ in gpu.opened]
    assert graphs == (["1", "0"] if cuda_graph else ["0"]), "the plain run has a session of its own"
    (plain,) = open_session(make_network(), CPU, batch=2)._ort.run(None, {"images": _images(2, 3, 8, 8)})
    bound.run()
    np.testing.assert_allclose(bound.outputs()[0], plain, rtol=1e-5)


@_GPU_PROVIDERS
def test_a_session_with_a_graph_is_bound_once(make_network: Make, gpu: GpuRuntime, provider: Any) -> None:
    session = open_session(make_network(), BenchOptions(provider=provider, cuda_graph=True), batch=2)
    session.bind(_images(2, 3, 8, 8))
    with pytest.raises(ProviderError, match="captured a CUDA graph of the batch that was bound first"):
        session.bind(_images(2, 3, 8, 8))
    free = open_session(make_network(), BenchOptions(provider=provider), batch=2)
    for _ in range(2):
        free.bind(_images(2, 3, 8, 8))


@_GPU_PROVIDERS
def test_a_graph_that_computes_nothing_is_found(make_network: Make, gpu: GpuRuntime, provider: Any) -> None:
    bound = open_session(make_network(), BenchOptions(provider=provider, cuda_graph=True), batch=2).bind(
        _images(2, 3, 8, 8)
    )
    bound.run()
    gpu.replays = False
    assert np.any(bound.outputs()[0]), "what the capture left there looks right"
    with pytest.raises(ProviderError, match=r"does not compute what the network computes: .*differ by 1 of their size"):
        bound.check_replay()


def test_a_graph_needs_outputs_of_fixed_sizes(make_network: Make, gpu: GpuRuntime) -> None:
    path = make_network()
    model = onnx.load(path)
    model.graph.node.append(onnx.helper.make_node("NonZero", ["features"], ["where"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("where", TensorProto.INT64, [2, "found"]))
    onnx.save(model, path)
    bound = open_session(path, CPU, batch=2).bind(_images(2, 3, 8, 8))
    features, where = bound.outputs()
    np.testing.assert_array_equal(where, np.nonzero(features))
    with pytest.raises(ProviderError, match=r"sizes of where follow from the input: a CUDA graph cannot have such"):
        open_session(path, replace(CUDA, cuda_graph=True), batch=2).bind(_images(2, 3, 8, 8))


def test_what_was_not_loaded_is_said_when_the_first_run_fails(
    make_network: Make, gpu: GpuRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort, "preload_dlls", lambda: print("Failed to load libfoo"))
    session = open_session(make_network(), CUDA, batch=2)
    gpu.fails = "CUDNN_STATUS_NOT_INITIALIZED"
    with pytest.raises(ProviderError, match=r"CUDNN_STATUS_NOT_INITIALIZED\nFailed to load libfoo\n"):
        session.bind(_images(2, 3, 8, 8))


def test_settings_hide_where_the_timing_cache_lies(make_network: Make, gpu: GpuRuntime) -> None:
    settings = open_session(make_network(), BenchOptions(provider="tensorrt"), batch=2).settings
    assert settings["provider_options"]["trt_timing_cache_path"].startswith("a temporary folder")
    assert settings["nvidia_tf32_override"] == "0"
