from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from gpu_stand_ins import FakeNvml, GpuRuntime
from pruneport.bench.latency import measure as latency
from pruneport.bench.latency import timer
from pruneport.bench.latency.bound import BoundRun
from pruneport.bench.latency.checks import check_required
from pruneport.bench.latency.measure import measure, preflight
from pruneport.bench.latency.records import BatchTimes, Measured, Speedup, read_measured
from pruneport.bench.latency.sessions import open_session, read_inputs
from pruneport.bench.latency.stats import paired_speedup, summarise
from pruneport.bench.latency.timer import Elapsed, take_turns, time_run
from pruneport.bench.options import BenchOptions
from pruneport.errors import InputError, ModelError, ProviderError, SpeedupError

QUICK = BenchOptions(batches=(1, 3), repeats=4, warmup=1, threads=1)
Make = Callable[..., Path]


@pytest.fixture
def networks(make_network: Make) -> tuple[Path, Path]:
    return make_network("dense", width=8), make_network("pruned", width=4)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No clock and no network: dense takes 4 ms, pruned 2 ms; the list is the order of the runs."""
    order: list[str] = []

    class Run:
        def __init__(self, name: str) -> None:
            self.name = name

        def check_replay(self) -> None:
            pass

    def time_run(run: Run) -> Elapsed:
        order.append(run.name)
        wall_ms = {"dense": 4.0, "pruned": 2.0, "dense.int8": 1.0, "model.int8": 0.5}[run.name]
        return Elapsed(wall_ms=wall_ms, cpu_ms=1.0)

    class Session:
        def __init__(self, path: Path) -> None:
            self.path, self.inputs = path, read_inputs(path)
            self.settings: dict[str, Any] = {}
            self.placement: dict[str, int] = {}

        def bind(self, *values: Any) -> Run:
            return Run(self.path.stem)

    monkeypatch.setattr(latency, "open_session", lambda path, options, batch: Session(path))
    monkeypatch.setattr(timer, "time_run", time_run)
    return order


def test_bench_json_has_its_format(networks: tuple[Path, Path]) -> None:
    bench = json.loads(json.dumps(measure(*networks, QUICK).to_dict()))
    assert list(bench) == [
        "format_version",
        "created",
        "provider",
        "device",
        "settings",
        "versions",
        "method",
        "batches",
    ]
    assert (bench["format_version"], bench["provider"]) == (1, "cpu")
    assert datetime.fromisoformat(bench["created"]).tzinfo is not None
    assert set(bench["device"]["at_end"]) < set(bench["device"])
    assert bench["settings"]["intra_op_threads"] == 1
    assert (bench["settings"]["warmup"], bench["settings"]["repeats"]) == (1, 4)
    assert set(bench["settings"]["nodes_per_provider"]) == {"dense", "pruned"}
    assert [entry["batch"] for entry in bench["batches"]] == [1, 3]
    for entry in bench["batches"]:
        assert list(entry) == ["batch", "dense", "pruned", "speedup", "device"]
        assert set(entry["device"]) == set(bench["device"]["at_end"])
        assert list(entry["speedup"]) == ["ratio", "low", "high", "confidence"]
        for name in ("dense", "pruned"):
            side = entry[name]
            assert list(side) == ["samples_ms", "p50_ms", "p90_ms", "p99_ms", "mean_ms", "images_per_s"]
            assert len(side["samples_ms"]) == 4
            assert 0 < min(side["samples_ms"]) <= side["p50_ms"] <= side["p90_ms"] <= side["p99_ms"]
            assert side["images_per_s"] == pytest.approx(entry["batch"] * 1000 / side["p50_ms"])
        assert entry["speedup"]["ratio"] == pytest.approx(entry["dense"]["p50_ms"] / entry["pruned"]["p50_ms"])


def test_first_place_alternates_after_the_warm_up(networks: tuple[Path, Path], runs: list[str]) -> None:
    bench = measure(*networks, replace(QUICK, batches=(2,), warmup=2, repeats=3))
    assert runs[:4] == ["dense", "dense", "pruned", "pruned"]
    assert runs[4:] == ["dense", "pruned", "pruned", "dense", "dense", "pruned"]
    assert "dense first in rounds 0, 2" in bench.settings["order"]
    (entry,) = bench.batches
    assert entry.dense.samples_ms == (4.0, 4.0, 4.0)
    assert entry.dense.images_per_s == 500
    assert entry.speedup == Speedup(ratio=2.0, low=2.0, high=2.0, confidence=0.95)


def test_other_precisions_are_timed_in_the_same_rounds(
    networks: tuple[Path, Path], make_network: Make, runs: list[str]
) -> None:
    others: Any = {"int8": (make_network("dense.int8", width=8), make_network("model.int8", width=4))}
    bench = measure(*networks, replace(QUICK, batches=(1,), warmup=1, repeats=3), others=others)
    names = ["dense", "pruned", "dense.int8", "model.int8"]
    assert runs == [*names, *names, *reversed(names), *names]
    assert "the reverse in rounds 1, 3" in bench.settings["order"]
    (entry,) = bench.batches
    (int8,) = entry.precisions
    assert (int8.precision, int8.dense.p50_ms, int8.pruned.p50_ms) == ("int8", 1.0, 0.5)
    assert (entry.speedup.ratio, int8.dense_speedup.ratio, int8.pruned_speedup.ratio) == (2.0, 4.0, 8.0)
    assert int8.speedup == Speedup(ratio=2.0, low=2.0, high=2.0, confidence=0.95)  # of int8 over int8
    content = json.dumps(bench.to_dict()).encode()
    assert read_measured(content, "bench.json", "")["batches"][0]["precisions"][0]["pruned"]["p50_ms"] == 0.5
    earlier = json.loads(content)
    del earlier["batches"][0]["precisions"]
    read_measured(json.dumps(earlier).encode(), "bench.json", "")


def test_other_precisions_must_take_the_same(networks: tuple[Path, Path], make_network: Make) -> None:
    half = make_network("dense.fp16", width=8, dtype=TensorProto.FLOAT16)
    with pytest.raises(ModelError, match="Dense and dense fp16 must take the same inputs"):
        measure(*networks, QUICK, others={"fp16": (half, half)})
    with pytest.raises(InputError, match=r"pruned int8: absent\.onnx does not exist"):
        measure(*networks, QUICK, others={"int8": (networks[0], Path("absent.onnx"))})


def test_clocks_are_read_when_the_timed_rounds_end(
    networks: tuple[Path, Path], runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def sample(provider: str, index: int) -> dict[str, Any]:
        runs.append("sample")
        return {"sm_clock_mhz": len(runs)}

    def speedup(*samples: Any, **options: Any) -> Any:
        runs.append("statistics")
        return paired_speedup(*samples, **options)

    monkeypatch.setattr(latency, "sample_device", sample)
    monkeypatch.setattr(latency, "paired_speedup", speedup)
    bench = measure(*networks, replace(QUICK, repeats=2))
    each = ["dense", "pruned", "dense", "pruned", "pruned", "dense", "sample", "statistics"]
    assert runs == 2 * each
    clocks = [entry.device["sm_clock_mhz"] for entry in bench.batches]
    assert clocks == [7, 15]
    assert bench.device["at_end"] == {"sm_clock_mhz": 15, "cpu_in_use_by_others": None}  # too short to tell


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> GpuRuntime:
    """A GPU's runtime and driver, on which little time is long enough."""
    FakeNvml.installed(monkeypatch)
    monkeypatch.setattr("pruneport.bench.nvml._cuda_uuid", lambda index: None)
    monkeypatch.setattr(latency, "WARM_UP_S", 0.02)
    monkeypatch.setattr(latency, "MEASURED_S", 0.05)
    return GpuRuntime.installed(monkeypatch)


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_gpu_is_timed_in_blocks_for_a_time(networks: tuple[Path, Path], gpu: GpuRuntime, provider: Any) -> None:
    bench = measure(*networks, replace(QUICK, provider=provider, cuda_graph=True))
    settings = bench.settings
    assert (settings["warmup_least_s"], settings["measured_least_s"]) == (0.02, 0.05)
    for entry in bench.batches:
        rounds, block = (settings[name][str(entry.batch)] for name in ("rounds", "runs_per_round"))
        assert rounds >= 4
        assert block >= 5
        assert len(entry.dense.samples_ms) == len(entry.pruned.samples_ms) == rounds * block
        assert entry.device["throttle_reasons"] == ["power_cap", "thermal_slowdown"]
        assert entry.device["gpu_other_processes"] == 1
    assert "runs a block of times in its turn" in bench.method
    read_measured(json.dumps(bench.to_dict()).encode(), "bench.json", "")
    preflight(replace(QUICK, provider=provider, cuda_graph=True))


def test_the_first_run_of_a_block_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def time_run(run: str) -> Elapsed:
        order.append(run)
        return Elapsed(wall_ms=1000.0 if order[-2:-1] != [run] else 10.0, cpu_ms=0.0)

    monkeypatch.setattr(timer, "time_run", time_run)
    now = iter(range(0, 1000))
    monkeypatch.setattr(timer, "time", SimpleNamespace(monotonic=lambda: float(next(now))))
    turns = take_turns({"dense": "dense", "pruned": "pruned"}, 2, BenchOptions(provider="cuda"))  # type: ignore[dict-item]
    assert turns.block == 5
    dense, pruned = ["dense"] * 6, ["pruned"] * 6
    two_rounds = [*dense, *pruned, *pruned, *dense]
    assert order == ["dense", "pruned", *two_rounds, *two_rounds], "two rounds were asked for, and 3 s of this clock"
    assert {sample.wall_ms for samples in turns.samples.values() for sample in samples} == {10.0}


def test_sessions_of_a_batch_are_gone_before_the_next_opens(
    networks: tuple[Path, Path], gpu: GpuRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: list[int] = []
    real = latency.open_session

    def watched(*given: Any, **more: Any) -> Any:
        there.append(gpu.alive[0])
        return real(*given, **more)

    monkeypatch.setattr(latency, "open_session", watched)
    measure(*networks, replace(QUICK, provider="cuda"))
    assert there == [0, 1, 0, 1]


def test_preflight_runs_a_convolution(gpu: GpuRuntime) -> None:
    preflight(replace(QUICK, provider="cuda"))
    gpu.fails = "cudnn_engines_precompiled.so.9: cannot open shared object file"
    with pytest.raises(ProviderError, match=r"cudnn_engines_precompiled\.so\.9: cannot open"):
        preflight(replace(QUICK, provider="cuda"))


@pytest.mark.parametrize("output", [0.0, np.nan])
def test_preflight_looks_at_what_comes_out(output: float, gpu: GpuRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    real = BoundRun.outputs
    monkeypatch.setattr(BoundRun, "outputs", lambda run: [np.full_like(array, output) for array in real(run)])
    with pytest.raises(ProviderError, match=r"in a convolution of ones where 72 is right"):
        preflight(replace(QUICK, provider="cuda"))


def test_confidence_reaches_the_interval(networks: tuple[Path, Path], runs: list[str]) -> None:
    assert measure(*networks, replace(QUICK, confidence=0.8)).batches[0].speedup.confidence == 0.8


def test_progress_names_every_step(networks: tuple[Path, Path], runs: list[str]) -> None:
    lines: list[str] = []
    measure(*networks, QUICK, lines.append)
    assert len(lines) == 9
    assert lines[:4] == [
        "watching what else this machine does",
        "batch 1: opening both networks on cpu",
        "batch 1: 1 warm-up runs of each network",
        "batch 1: 4 timed rounds",
    ]
    assert lines[-1] == "batch 3: 2.00x (2.00 to 2.00)"


def test_images_are_the_same_every_time_and_of_the_network_s_type(make_network: Make) -> None:
    session = open_session(make_network(dtype=TensorProto.FLOAT16), QUICK)
    (images,) = session.inputs.drawn(64, 0)
    assert images.shape == (64, 3, 8, 8)
    assert images.dtype == np.float16
    assert np.array_equal(images, session.inputs.drawn(64, 0)[0])
    assert abs(images.astype(np.float32).std() - 1) < 0.05


def test_networks_of_several_inputs_are_timed(make_several: Make) -> None:
    inputs = {"images": (TensorProto.UINT8, ["batch", 4, 4, 3]), "tokens": (TensorProto.INT64, ["batch", 5])}
    dense, pruned = make_several("dense", inputs), make_several("pruned", inputs)
    bench = measure(dense, pruned, QUICK)
    assert [entry.batch for entry in bench.batches] == [1, 3]
    assert bench.settings["inputs"]["tokens"] == {"shape": [5], "dtype": "int64"}
    assert bench.settings["batch_fixed_in_session"]
    other = make_several("other", {**inputs, "tokens": (TensorProto.INT32, ["batch", 5])})
    with pytest.raises(ModelError, match=r"same inputs .* dense takes .*tokens int64 \(5,\), pruned .*tokens int32"):
        measure(dense, other, QUICK)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"batches": ()}, "batches must be different sizes of at least 1; got none"),
        ({"batches": (1, 0)}, "batches must be different sizes of at least 1; got 1 0"),
        ({"batches": (2, 2)}, "batches must be different sizes of at least 1; got 2 2"),
        ({"repeats": 1}, "repeats must be at least 2; got 1"),
        ({"warmup": 0}, "warmup must be at least 1, .*; got 0"),
        ({"threads": 0}, "threads must be from 1 to 1024; got 0"),
        ({"threads": 10**8}, "threads must be from 1 to 1024; got 100000000"),
        ({"device": -1}, "device must be at least 0; got -1"),
        ({"confidence": 0.0}, r"confidence must be inside \(0, 1\), such as 0.95; got 0.0"),
        ({"confidence": 1.0}, r"confidence must be inside \(0, 1\), such as 0.95; got 1.0"),
        ({"confidence": float("nan")}, r"confidence must be inside \(0, 1\), such as 0.95; got nan"),
        ({"require_speedup": 0.0}, "require_speedup must be above 0; got 0.0"),
        ({"provider": "gpu"}, "provider must be one of cpu, cuda, tensorrt; got 'gpu'"),
        ({"tf32": True}, "tf32 needs the provider 'cuda' or 'tensorrt'; got 'cpu'"),
        *(
            (
                {"provider": "tensorrt", name: True},
                "nhwc, fuse_conv_bias and small_workspace belong to the provider 'cuda'; got 'tensorrt'",
            )
            for name in ("nhwc", "fuse_conv_bias", "small_workspace")
        ),
        ({"cuda_graph": True}, "cuda_graph needs the provider 'cuda' or 'tensorrt'; got 'cpu'"),
    ],
)
def test_options_out_of_range(networks: tuple[Path, Path], change: dict[str, Any], fault: str) -> None:
    with pytest.raises(InputError, match=rf"^The networks cannot be timed\. {fault}\.$"):
        measure(*networks, replace(QUICK, **change))


def test_all_faults_are_named_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "describe_device", lambda *_: pytest.fail("work began"))
    with pytest.raises(InputError) as caught:
        measure(tmp_path / "a.onnx", tmp_path / "b.onnx", replace(QUICK, batches=(), repeats=0, confidence=2))
    message = str(caught.value)
    for part in (
        "dense: ",
        "a.onnx does not exist",
        "pruned: ",
        "b.onnx does not exist",
        "batches",
        "repeats",
        "conf",
    ):
        assert part in message


def test_fixed_batch_is_refused_before_any_work(make_network: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "describe_device", lambda *_: pytest.fail("work began"))
    dense, pruned = make_network("dense", batch=3), make_network("pruned")
    with pytest.raises(ModelError, match=r"sizes 1 3 were asked for, but dense \(.*\) has the fixed batch 3\. Exp"):
        measure(dense, pruned, QUICK)


def test_fixed_batch_is_timed_when_it_is_the_one_asked_for(make_network: Make) -> None:
    dense, pruned = make_network("dense", batch=3), make_network("pruned", batch=3)
    assert [entry.batch for entry in measure(dense, pruned, replace(QUICK, batches=(3,))).batches] == [3]


@pytest.mark.parametrize("change", [{"image": (3, 9, 9)}, {"dtype": TensorProto.FLOAT16}])
def test_different_images_are_refused(make_network: Make, change: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"same inputs .* dense takes images float32 \(3, 8, 8\), pruned images float"):
        measure(make_network("dense"), make_network("pruned", **change), QUICK)


def test_failing_run_is_a_provider_error() -> None:
    class Run:
        def run(self) -> None:
            raise RuntimeError("device lost")

    with pytest.raises(ProviderError, match="A timed run failed: device lost"):
        time_run(Run())  # type: ignore[arg-type]


def _bench(*lows: float) -> Measured:
    times = summarise([2.0, 3.0])
    return Measured(
        created="2026-01-01T00:00:00+00:00",
        provider="cpu",
        device={},
        settings={},
        versions={},
        method="",
        batches=tuple(
            BatchTimes(
                batch=2**index,
                dense=times,
                pruned=times,
                speedup=Speedup(ratio=1.5, low=low, high=1.6, confidence=0.95),
            )
            for index, low in enumerate(lows)
        ),
    )


def test_required_speedup_that_is_measured_passes() -> None:
    check_required(_bench(1.3, 1.4), 1.3)


def test_every_batch_below_the_required_speedup_is_named() -> None:
    with pytest.raises(SpeedupError) as caught:
        check_required(_bench(1.1, 1.4, 1.2), 1.3)
    message = str(caught.value)
    assert "at least 1.3x on cpu" in message
    assert "batch 1: 1.500x, 95% interval 1.100 to 1.600; batch 4: 1.500x, 95% interval 1.200" in message
    assert "batch 2" not in message
    assert caught.value.exit_code == 1


def test_a_speedup_that_is_not_a_number_fails() -> None:
    with pytest.raises(SpeedupError, match="batch 1: "):
        check_required(_bench(float("nan")), 1.0)
