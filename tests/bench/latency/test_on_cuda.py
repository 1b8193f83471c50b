"""ONNX Runtime on a GPU: what it computes against the CPU, what is refused, and what is recorded."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
import torch

from pruneport.bench.devices import describe_device
from pruneport.bench.latency.measure import measure, preflight
from pruneport.bench.latency.providers import TF32, provider_options
from pruneport.bench.latency.sessions import open_session
from pruneport.bench.latency.timed_form import TimedForm
from pruneport.bench.latency.timer import DenseTimer
from pruneport.bench.options import BenchOptions
from pruneport.compress.options import PruneOptions
from pruneport.compress.prune import prune
from pruneport.errors import ProviderError
from pruneport.export.onnx.exporter import export_network
from pruneport.models.options import SourceOptions
from pruneport.models.source import open_source

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        "CUDAExecutionProvider" not in ort.get_available_providers(), reason="this ONNX Runtime has no CUDA"
    ),
]

CUDA = BenchOptions(provider="cuda", batches=(1, 16), repeats=3, warmup=2)
TENSORRT = replace(CUDA, provider="tensorrt")
with_tensorrt = pytest.mark.skipif(importlib.util.find_spec("tensorrt") is None, reason="TensorRT is not installed")
FULL, HALF = 1e-5, 1e-2  # of the norm of the outputs: sums in another order, and numbers of 11 bits


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Dense and pruned ResNet-18 at 64 x 64, in fp32 and fp16."""
    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    dense, source = open_source(SourceOptions(source="torchvision:resnet18", input_shape=(3, 64, 64)))
    pruned = prune(dense, source, PruneOptions(flops=0.5, criterion="l1", ranking="uniform")).network
    files = {}
    for name, network in (("dense", dense), ("pruned", pruned)):
        for precision in ("fp32", "fp16"):
            path = folder / f"{name}.{precision}.onnx"
            export_network(network, source.takes, precision=precision).save(path, {})  # type: ignore[arg-type]
            files[f"{name} {precision}"] = path
    return files


def outputs(path: Path, options: BenchOptions, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    bound = open_session(path, options, batch=len(values)).bind(values)
    bound.check_replay()
    bound.run()
    (found,) = bound.outputs()
    return found.astype(np.float64)


def images(count: int) -> npt.NDArray[Any]:
    return np.random.default_rng(1).standard_normal((count, 3, 64, 64), dtype=np.float32)


@pytest.mark.parametrize(
    "switches", [{}, {"nhwc": True}, {"fuse_conv_bias": True}, {"small_workspace": True}, {"cuda_graph": True}]
)
@pytest.mark.parametrize("batch", [1, 16])
def test_outputs_are_those_of_the_cpu(networks: dict[str, Path], switches: dict[str, bool], batch: int) -> None:
    options, values = replace(CUDA, **switches), images(batch)  # type: ignore[arg-type]
    for name, tolerance in (("pruned fp32", FULL), ("pruned fp16", HALF)):
        wanted = outputs(networks[name.replace("fp16", "fp32")], BenchOptions(), values)
        got = outputs(networks[name], options, values)
        assert np.linalg.norm(got - wanted) < tolerance * np.linalg.norm(wanted), name


@with_tensorrt
@pytest.mark.parametrize("cuda_graph", [False, True])
@pytest.mark.parametrize("batch", [1, 16])
def test_tensorrt_gives_the_outputs_of_the_cpu(networks: dict[str, Path], cuda_graph: bool, batch: int) -> None:
    """Without TF32, in the precision that the file has; each engine after the first finds the timings of the others."""
    options, values = replace(TENSORRT, cuda_graph=cuda_graph), images(batch)
    for name, tolerance in (("pruned fp32", FULL), ("pruned fp16", HALF)):
        wanted = outputs(networks[name.replace("fp16", "fp32")], BenchOptions(), values)
        got = outputs(networks[name], options, values)
        assert np.linalg.norm(got - wanted) < tolerance * np.linalg.norm(wanted), name
    cache = provider_options(options)["trt_timing_cache_path"]
    assert list(Path(cache).iterdir())


@with_tensorrt
def test_tensorrt_runs_a_quantised_file_as_the_cpu_does(networks: dict[str, Path]) -> None:
    path, values = TimedForm("tensorrt", "int8")(networks["pruned fp32"]), images(16)
    session = open_session(path, TENSORRT, batch=16)
    assert session.settings["provider_options"]["trt_int8_enable"] == "1"
    wanted, got = outputs(path, BenchOptions(), values), outputs(path, TENSORRT, values)
    assert np.linalg.norm(got - wanted) < 0.1 * np.linalg.norm(wanted)


@with_tensorrt
def test_tensorrt_runs_every_node_and_a_graph_of_one_batch(networks: dict[str, Path]) -> None:
    preflight(TENSORRT)
    session = open_session(networks["pruned fp32"], replace(TENSORRT, cuda_graph=True), batch=2)
    assert set(session.placement) == {"TensorrtExecutionProvider"}
    assert session.settings["provider_options"]["trt_builder_optimization_level"] == "3"
    session.bind(images(2))
    with pytest.raises(ProviderError, match="has captured a CUDA graph"):
        session.bind(images(2))
    done = measure(networks["dense fp32"], networks["pruned fp32"], replace(TENSORRT, batches=(1,)))
    assert {"cuda", "cudnn", "tensorrt"} <= set(done.versions)


def test_a_session_runs_every_node_on_the_gpu(networks: dict[str, Path]) -> None:
    session = open_session(networks["pruned fp32"], CUDA, batch=4)
    assert set(session.placement) == {"CUDAExecutionProvider"}
    assert session.settings["provider_options"]["use_tf32"] == "0"


def test_a_second_batch_is_refused_where_a_graph_was_captured(networks: dict[str, Path]) -> None:
    session = open_session(networks["pruned fp32"], replace(CUDA, cuda_graph=True), batch=2)
    session.bind(images(2))
    with pytest.raises(ProviderError, match="has captured a CUDA graph"):
        session.bind(images(2))


def test_both_networks_are_timed_and_the_device_recorded(networks: dict[str, Path]) -> None:
    preflight(CUDA)
    files = {"fp16": (networks["dense fp16"], networks["pruned fp16"])}
    done = measure(networks["dense fp32"], networks["pruned fp32"], CUDA, others=files)  # type: ignore[arg-type]
    content = json.loads(json.dumps(done.to_dict()))
    assert content["provider"] == "cuda"
    assert torch.cuda.get_device_name(0) in json.dumps(content["device"])
    assert {"cuda", "cudnn"} <= {name.lower() for name in content["versions"]}
    for batch in content["batches"]:
        assert 0 < batch["pruned"]["p50_ms"] < 100
        assert batch["speedup"]["low"] <= batch["speedup"]["ratio"] <= batch["speedup"]["high"]
    assert describe_device("cuda", 0)["gpu"] == torch.cuda.get_device_name(0)


_SCRIPT = """
import sys
import numpy as np
from pathlib import Path
from pruneport.bench.latency.sessions import open_session
from pruneport.bench.options import BenchOptions
path, tf32, values = Path(sys.argv[1]), sys.argv[2] == "True", np.load(sys.argv[3])
bound = open_session(path, BenchOptions(provider="cuda", tf32=tf32), batch=len(values)).bind(values)
np.save(sys.argv[4], bound.outputs()[0])
"""


def test_tf32_is_used_where_it_is_asked_for_and_only_there(networks: dict[str, Path], tmp_path: Path) -> None:
    """Each in a process of its own, which keeps what it started CUDA with."""
    values = images(16)
    np.save(tmp_path / "images.npy", values)
    wanted = outputs(networks["dense fp32"], BenchOptions(), values)
    errors = {}
    for tf32 in (False, True):
        result = tmp_path / f"{tf32}.npy"
        words = [str(networks["dense fp32"]), str(tf32), str(tmp_path / "images.npy"), str(result)]
        environment = {name: value for name, value in os.environ.items() if name != TF32}
        subprocess.run([sys.executable, "-c", _SCRIPT, *words], check=True, env=environment)
        errors[tf32] = np.linalg.norm(np.load(result) - wanted) / np.linalg.norm(wanted)
    assert errors[False] < FULL < errors[True] < HALF


def test_memory_is_given_back_between_batches(networks: dict[str, Path]) -> None:
    free = []
    for _ in range(3):
        open_session(networks["dense fp32"], CUDA, batch=256).bind(images(256)).run()
        free.append(torch.cuda.mem_get_info(0)[0])
    assert free[2] > 0.95 * free[0]


def test_a_latency_target_is_timed_in_fp16(networks: dict[str, Path]) -> None:
    timer = DenseTimer(networks["dense fp32"], CUDA, 16, "fp16")
    timed = timer.time(networks["pruned fp32"], 3, quick=True)
    assert 0 < timed.low <= timed.share <= timed.high
    assert (
        onnx.load(networks["pruned fp32"].with_name("pruned.fp32.timed.onnx")).graph.initializer[0].data_type
        == onnx.TensorProto.FLOAT16
    )
