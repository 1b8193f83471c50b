from __future__ import annotations

import json
import os
import platform
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pynvml
import pytest

from gpu_stand_ins import FakeNvml
from pruneport.bench import devices
from pruneport.bench.devices import (
    OthersWatch,
    ThrottleWatch,
    available_cores,
    cpu_in_use_by_others,
    describe_device,
    latency_versions,
    sample_device,
)
from pruneport.bench.nvml import _cuda_uuid
from pruneport.errors import ProviderError
from pruneport.export.card.summary import device_name


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    return FakeNvml.installed(monkeypatch)


def test_cpu_is_described_without_a_gpu() -> None:
    device = describe_device("cpu", 0)
    assert device["cpu"]
    assert device["physical_cores"] == psutil.cpu_count(logical=False)
    assert device["logical_cores"] == psutil.cpu_count()
    assert device["platform"] == platform.platform()
    assert device["python"] == platform.python_version()
    assert set(sample_device("cpu", 0)) == {"cpu_clock_mhz", "load_average_1min"} <= set(device)
    assert not any("gpu" in key for key in device)
    json.dumps(device)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity masks here")
def test_available_cores_respects_the_affinity_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 64)
    assert available_cores() == len(os.sched_getaffinity(0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(128)))
    assert available_cores() == 64


def test_gpu_is_described_with_units(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pruneport.bench.nvml._cuda_uuid", lambda index: f"{index}")
    device = describe_device("cuda", 3)
    assert (
        device
        | {
            "gpu": "NVIDIA Test",
            "gpu_uuid": "GPU-1",
            "driver": "580.1",
            "cuda_driver": "13.2",
            "sm_clock_mhz": 1200,
            "sm_clock_max_mhz": 1980,
            "memory_clock_mhz": 2600,
            "memory_clock_max_mhz": 3201,
            "power_w": 81.5,
            "power_limit_w": 700.0,
            "temperature_c": 30,
            "persistence_mode": None,
            "gpu_in_use": 0.75,
            "throttle_reasons": ["power_cap", "thermal_slowdown"],
            "gpu_other_processes": 1,
        }
        == device
    )
    assert set(nvml.handles) == {"GPU-3"}, "CUDA's device 3 need not be NVML's device 3"
    assert nvml.open == 0


def test_a_slice_of_a_gpu_is_found_by_its_own_uuid(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pruneport.bench.nvml._cuda_uuid", lambda index: f"{index}")
    nvml.prefix = "MIG-"
    assert describe_device("cuda", 0)["gpu"] == "NVIDIA Test"
    assert set(nvml.handles) == {"MIG-0"}
    nvml.prefix = "neither"
    with pytest.raises(ProviderError, match="No CUDA device 0: NVML says 'Not Found'"):
        describe_device("cuda", 0)


@pytest.mark.parametrize(("boards", "visible"), [(2, None), (1, "0"), (2, "1")])
def test_a_gpu_that_cannot_be_told_from_others_is_not_described(
    boards: int, visible: str | None, nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As with a torch built for the CPU alone.
    monkeypatch.setattr("pruneport.bench.nvml._cuda_uuid", lambda index: None)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    nvml.count = boards
    device = describe_device("cuda", 0)
    unknown = {"gpu", "gpu_uuid", "sm_clock_mhz", "sm_clock_max_mhz", "memory_clock_mhz", "power_w", "temperature_c"}
    assert {device[name] for name in unknown} == {None}
    assert (device["driver"], device["cuda_driver"]) == ("580.1", "13.2")
    assert sample_device("cuda", 0)["power_w"] is None
    assert device_name({"provider": "cuda", "device": device}) == ""
    json.dumps(device)


def test_gpu_sample_holds_what_changes(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pruneport.bench.nvml._cuda_uuid", lambda index: None)
    sample = sample_device("tensorrt", 0)
    assert {"sm_clock_mhz", "memory_clock_mhz", "power_w", "temperature_c", "cpu_clock_mhz"} <= set(sample)
    assert "gpu" not in sample


def test_reasons_of_low_clocks_are_gathered(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pruneport.bench.nvml._cuda_uuid", lambda index: None)
    now = iter([10.0, 10.0, 10.1, 11.0, 11.0])
    monkeypatch.setattr(devices, "time", SimpleNamespace(monotonic=lambda: next(now)))
    watch = ThrottleWatch("cuda", 0)
    assert watch.reasons() == {"throttle_reasons": None}
    nvml.throttled = pynvml.nvmlClocksThrottleReasonGpuIdle
    watch.look()
    assert watch.reasons() == {"throttle_reasons": []}, "no work is no reason"
    nvml.throttled = pynvml.nvmlClocksThrottleReasonSwPowerCap
    watch.look()  # too soon
    assert watch.reasons() == {"throttle_reasons": []}
    nvml.throttled = pynvml.nvmlClocksThrottleReasonHwSlowdown
    watch.look()
    assert watch.reasons() == {"throttle_reasons": ["hardware_slowdown"]}
    assert ThrottleWatch("cpu", 0).reasons() == {}


def test_missing_device_is_refused_and_nvml_closed(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pruneport.bench.nvml._cuda_uuid", lambda index: None)
    with pytest.raises(ProviderError, match=r"No CUDA device 7: .*counts 1 GPU\(s\).*CUDA_VISIBLE_DEVICES"):
        describe_device("cuda", 7)
    assert nvml.open == 0


def test_uuid_comes_from_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    class Properties:
        uuid = "abcd-ef"

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)
    assert _cuda_uuid(0) == "abcd-ef"
    assert _cuda_uuid(1) is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert _cuda_uuid(0) is None


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_missing_nvml_says_what_to_do(provider: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    for function in (describe_device, sample_device):
        with pytest.raises(ProviderError, match=r"NVML Shared Library Not Found.*Install the NVIDIA driver"):
            function(provider, 0)


def test_versions_name_the_libraries_that_matter() -> None:
    versions = latency_versions()
    assert set(versions) == {"onnxruntime", "torch", "numpy", "onnx"}
    assert versions["numpy"] == np.__version__


def test_what_others_use_is_not_what_this_process_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cores for half a second: 0.4 and 0.2 s busy, of which 0.3 s are our own."""
    at = iter([10.0, 10.5])
    cores = iter([[(1.0, 5.0), (2.0, 5.0)], [(1.4, 5.1), (2.2, 5.3)]])
    own = iter([(7.0, 1.0), (7.2, 1.1)])
    monkeypatch.setattr(devices, "time", SimpleNamespace(monotonic=lambda: next(at), sleep=lambda _: None))
    monkeypatch.setattr(
        psutil, "cpu_times", lambda percpu: [SimpleNamespace(user=user, idle=idle) for user, idle in next(cores)]
    )
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(cpu_times=lambda: next(own)))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    assert cpu_in_use_by_others() == pytest.approx(0.3 / (2 * 0.5))


def test_a_moment_is_too_short_to_tell_what_others_use() -> None:
    assert OthersWatch().share() is None
