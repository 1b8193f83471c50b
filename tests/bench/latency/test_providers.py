from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from gpu_stand_ins import GpuRuntime
from pruneport.bench.gpu_state import loaded_libraries
from pruneport.bench.latency import providers
from pruneport.bench.latency.providers import (
    TF32,
    number_types,
    preload,
    provider_options,
    session_config,
    settle_tf32,
    wanted_tensorrt,
)
from pruneport.bench.latency.sessions import open_session
from pruneport.bench.options import BenchOptions
from pruneport.errors import ProviderError

CUDA, TENSORRT = BenchOptions(provider="cuda"), BenchOptions(provider="tensorrt")
_ROOT = Path(__file__).parents[3]
Make = Callable[..., Path]

without_tensorrt = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt") is not None, reason="the real TensorRT is installed"
)
built_for_gpus = pytest.mark.skipif(wanted_tensorrt() is None, reason="this ONNX Runtime is not built for GPUs")


@pytest.fixture(autouse=True)
def own_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is set in the environment is taken back."""
    monkeypatch.setenv(TF32, "")
    monkeypatch.delenv(TF32)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A module in place of TensorRT's."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(ort, "preload_dlls", lambda: None)
    yield tmp_path / "tensorrt.py"
    sys.modules.pop("tensorrt", None)


def test_options_for_cuda() -> None:
    assert provider_options(BenchOptions(provider="cuda", device=1, tf32=True)) == {
        "device_id": "1",
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "cudnn_conv_use_max_workspace": "1",
        "fuse_conv_bias": "0",
        "do_copy_in_default_stream": "1",
        "use_tf32": "1",
        "prefer_nhwc": "0",
        "enable_cuda_graph": "0",
    }
    switched = BenchOptions(provider="cuda", nhwc=True, cuda_graph=True, fuse_conv_bias=True, small_workspace=True)
    changed = provider_options(switched)
    names = ("use_tf32", "prefer_nhwc", "enable_cuda_graph", "fuse_conv_bias", "cudnn_conv_use_max_workspace")
    assert [changed[name] for name in names] == ["0", "1", "1", "1", "0"]


@pytest.mark.parametrize(("dtype", "flag"), [(TensorProto.FLOAT, "0"), (TensorProto.FLOAT16, "1")])
def test_fp16_keeps_its_tensor_cores(
    make_network: Make, dtype: int, flag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``use_tf32=0`` takes them from every convolution; TF32 itself is off by the variable."""
    runtime = GpuRuntime.installed(monkeypatch)
    open_session(make_network("network", dtype=dtype), CUDA, batch=2)
    ((_, options, _),) = runtime.opened
    assert options["use_tf32"] == flag
    assert providers.os.environ[TF32] == "0"


def test_options_for_tensorrt() -> None:
    asked = provider_options(BenchOptions(provider="tensorrt", cuda_graph=True))
    assert Path(asked.pop("trt_timing_cache_path")).is_dir()
    assert asked == {
        "device_id": "0",
        "trt_fp16_enable": "0",
        "trt_bf16_enable": "0",
        "trt_int8_enable": "0",
        "trt_builder_optimization_level": "3",
        "trt_engine_cache_enable": "0",
        "trt_timing_cache_enable": "1",
        "trt_cuda_graph_enable": "1",
    }


def test_all_engines_share_one_cache_of_timings() -> None:
    (one,) = {provider_options(TENSORRT)["trt_timing_cache_path"] for _ in range(2)}
    script = (
        "from pruneport.bench.latency.providers import provider_options\n"
        "from pruneport.bench.options import BenchOptions\n"
        "print(provider_options(BenchOptions(provider='tensorrt'))['trt_timing_cache_path'])"
    )
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
    assert other != one
    assert not Path(other).exists(), "it goes with its process"


@built_for_gpus
@pytest.mark.parametrize(("name", "options"), [("cuda", CUDA), ("tensorrt", TENSORRT)])
def test_every_option_is_one_that_the_provider_knows(name: str, options: BenchOptions) -> None:
    place = Path(ort.__file__).parent / "capi" / f"libonnxruntime_providers_{name}.so"
    known = place.read_bytes()
    # Short names are not stored as text.
    assert [
        option for option in provider_options(options) if len(option) > 16 and option.encode()[:16] not in known
    ] == []


@built_for_gpus
def test_the_advised_tensorrt_is_the_one_that_the_provider_needs() -> None:
    wanted = wanted_tensorrt()
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (asked,) = [line for line in project["optional-dependencies"]["tensorrt"] if line.startswith("tensorrt")]
    assert asked in providers.INSTALL["tensorrt"]
    least, most = re.findall(r"\d+", asked.partition(">=")[2].replace(",", " "))[0], asked.rpartition("<")[2]
    assert (int(least), int(most)) == (wanted, wanted + 1)
    cuda = (Path(ort.__file__).parent / "capi" / "libonnxruntime_providers_tensorrt.so").read_bytes()
    assert f"libcudart.so.{asked.partition('-cu')[2][:2]}".encode() in cuda


def _quantised(make_network: Make) -> Path:
    """A convolution whose input and weight are int8."""
    path = make_network("quantised")
    model = onnx.load(path)
    graph = model.graph
    (weight,) = [entry for entry in graph.initializer if entry.name == "weight"]
    steps = np.array(0.05, np.float32), np.array(0, np.int8)
    whole = np.clip(np.round(numpy_helper.to_array(weight) / steps[0]), -127, 127).astype(np.int8)
    graph.initializer.remove(weight)
    graph.initializer.extend(
        numpy_helper.from_array(value, name)
        for name, value in (("whole", whole), ("step", steps[0]), ("zero", steps[1]))
    )
    added = [
        helper.make_node("QuantizeLinear", ["images", "step", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["dq"]),
        helper.make_node("DequantizeLinear", ["whole", "step", "zero"], ["weight"]),
    ]
    graph.node[0].input[0] = "dq"
    nodes = [*added, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, path)
    return path


def test_precisions_follow_from_the_file(make_network: Make) -> None:
    files = {
        "float": (make_network("float"), "0 0 0"),
        "half": (make_network("half", dtype=TensorProto.FLOAT16), "1 0 0"),
        "int8": (_quantised(make_network), "0 0 1"),
    }
    model = onnx.load(files["float"][0])
    model.graph.node.append(helper.make_node("Cast", ["features"], ["low"], to=TensorProto.BFLOAT16))
    onnx.save(model, make_network("mixed"))
    files["mixed"] = (make_network("mixed").with_name("mixed.onnx"), "0 0 0")
    for path, flags in files.values():
        options = provider_options(TENSORRT, number_types(onnx.load(path)))
        assert " ".join(options[f"trt_{kind}_enable"] for kind in ("fp16", "bf16", "int8")) == flags
    assert number_types(model) == {"bfloat16"}


def test_tensorrt_gets_the_pairs_of_the_file(make_network: Make, tmp_path: Path) -> None:
    """Seen by what ONNX Runtime's own optimisation, which comes before the provider's, leaves."""
    path = _quantised(make_network)
    types = number_types(onnx.load(path))
    assert session_config(CUDA, types) == {}
    assert session_config(TENSORRT, frozenset({"float16"})) == {}
    left = {}
    for name, config in (
        ("as TensorRT gets it", session_config(TENSORRT, types)),
        ("the first entry alone", {"session.disable_quant_qdq": "1"}),
    ):
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        options.log_severity_level = 4
        for key, value in config.items():
            options.add_session_config_entry(key, value)
        ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        kinds = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
        left[name] = (kinds.count("QuantizeLinear"), kinds.count("DequantizeLinear"))
    assert left == {"as TensorRT gets it": (1, 2), "the first entry alone": (1, 1)}


@pytest.mark.parametrize("options", [CUDA, TENSORRT])
def test_tf32_is_off_before_cuda_starts(options: BenchOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = providers.os.environ
    settle_tf32(BenchOptions())
    assert TF32 not in environment, "the CPU has no TF32"
    settle_tf32(options)
    settle_tf32(options)
    assert environment[TF32] == "0"
    allowed = BenchOptions(provider=options.provider, tf32=True)
    with pytest.raises(ProviderError, match=r"NVIDIA_TF32_OVERRIDE is 0 in this process.*`tf32` was asked for"):
        settle_tf32(allowed)
    del environment[TF32]
    settle_tf32(allowed)
    assert TF32 not in environment
    environment[TF32] = "1"
    with pytest.raises(ProviderError, match=r"is 1 in this process.*`tf32` was not asked for"):
        settle_tf32(options)


def test_tensorrt_that_has_started_keeps_its_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "loaded_libraries", lambda: {"libnvinfer": "/libnvinfer.so.10"})
    settle_tf32(CUDA)  # has an option of its own
    del providers.os.environ[TF32]
    with pytest.raises(ProviderError, match="TensorRT has started in this process with TF32"):
        settle_tf32(TENSORRT)


@pytest.mark.skipif(not loaded_libraries(), reason="this system does not show a process its libraries")
def test_libraries_that_are_left_out_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "preload_dlls", lambda: print("Failed to load libfoo"))  # and says nothing of cuDNN
    monkeypatch.setattr(
        providers, "loaded_libraries", lambda: dict.fromkeys(("libcudart", "libcublas", "libcublasLt"), "")
    )
    assert preload(BenchOptions()) == ""
    said = preload(CUDA)
    assert said.startswith("Failed to load libfoo\n")
    assert said.endswith("needs and that are not loaded: libcurand, libcudnn.\n")
    assert "not loaded: libcudnn, libnvinfer, libnvonnxparser." in preload(TENSORRT)


@without_tensorrt
@pytest.mark.parametrize(("version", "said"), [("10.16.1", ""), ("11.4.0", "TensorRT 11.4.0 is installed, and this")])
def test_another_tensorrt_is_named(version: str, said: str, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package.write_text(f"__version__ = {version!r}\n")
    monkeypatch.setattr(providers, "wanted_tensorrt", lambda: 10)
    notes = preload(TENSORRT)
    assert ("was built for TensorRT 10" in notes) == bool(said)
    assert said in notes


@without_tensorrt
def test_a_tensorrt_that_cannot_be_imported_is_named(package: Path) -> None:
    package.write_text("raise OSError('libcudart.so.13 is missing')\n")
    assert "tensorrt cannot be imported: libcudart.so.13 is missing" in preload(TENSORRT)


_VERSIONS = """
import onnxruntime as ort
from pruneport.bench.gpu_state import gpu_library_versions
before = gpu_library_versions()
ort.preload_dlls()
print(before, gpu_library_versions(), sep="\\n")
"""


def _has(package: str) -> bool:
    return any(Path(ort.__file__).parents[1].glob(f"nvidia/*/lib/{package}.so.*"))


@pytest.mark.skipif(not _has("libcudart") or not _has("libcudnn"), reason="CUDA's runtime and cuDNN are not installed")
def test_versions_are_what_the_libraries_say() -> None:
    """They need no GPU to say it."""
    from importlib.metadata import version

    lines = subprocess.run(
        [sys.executable, "-c", _VERSIONS], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert lines[-2] == "{}"
    found: Any = eval(lines[-1])  # a dict, printed by the line above
    assert version("nvidia-cuda-runtime").startswith(f"{found['cuda']}.")
    assert version("nvidia-cudnn-cu13").startswith(f"{found['cudnn']}.")
    assert "tensorrt" not in found
