"""What the timings ran on: processor, GPU, clocks and library versions."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Any

import onnxruntime as ort
import psutil

from pruneport.bench.gpu_state import throttle_reasons
from pruneport.bench.nvml import describe_gpu, gpu_handle, read_value, sample_gpu
from pruneport.bench.options import ProviderName
from pruneport.versions import library_versions

__all__ = [
    "OthersWatch",
    "ThrottleWatch",
    "available_cores",
    "cpu_in_use_by_others",
    "describe_device",
    "latency_versions",
    "sample_device",
]

_LOOK_EVERY_S = 0.2
_LEAST_WATCH_S = 0.3  # a tick is a hundredth of a second, on every core


def describe_device(provider: ProviderName, device_index: int) -> dict[str, Any]:
    """Describe the processor and, for a GPU provider, the GPU, with its clocks and power as they are now.

    Args:
        provider: ONNX Runtime execution provider that will be timed.
        device_index: index of the CUDA device; not used on the CPU.

    Returns:
        What stays (names, core counts, limits) and what :func:`sample_device` reads now.
        A value that the system does not report is None, and so is all of a GPU that cannot be told from others.

    Raises:
        ProviderError: a GPU provider is asked for, and NVML or the device is not there.
    """
    device: dict[str, Any] = {
        "cpu": _cpu_name(),
        "physical_cores": psutil.cpu_count(logical=False),
        "logical_cores": psutil.cpu_count(logical=True),
        "available_cores": available_cores(),
        "platform": platform.platform(),
        "python": platform.python_version(),
    }
    if provider != "cpu":
        with gpu_handle(device_index) as handle:
            device |= describe_gpu(handle)
    return device | sample_device(provider, device_index)


def sample_device(provider: ProviderName, device_index: int) -> dict[str, Any]:
    """Read what changes while timing: load and clocks; on a GPU also power (W), temperature (°C), use (a share), why
    its clocks are low, and how many other processes compute on it.

    Args:
        provider: ONNX Runtime execution provider that is timed.
        device_index: index of the CUDA device; not used on the CPU.

    Raises:
        ProviderError: a GPU provider is asked for, and NVML or the device is not there.
    """
    frequency = psutil.cpu_freq()
    sample: dict[str, Any] = {
        "cpu_clock_mhz": round(frequency.current) if frequency else None,
        "load_average_1min": psutil.getloadavg()[0],
    }
    if provider != "cpu":
        with gpu_handle(device_index) as handle:
            sample |= sample_gpu(handle)
    return sample


def cpu_in_use_by_others(seconds: float = 0.5) -> float | None:
    """Watch for a while how much of the cores that this process may use is used, and not by this process.

    The load average will not do: it is of the last minute, in which this process itself may have worked.

    Args:
        seconds: How long to watch; the caller does nothing meanwhile.

    Returns:
        A share in [0, 1] of the logical cores; None where the system does not say.
    """
    watch = OthersWatch()
    time.sleep(seconds)
    return watch.share()


class OthersWatch:
    """Watches from its making how much of the cores that this process may use others use, whatever this one does."""

    def __init__(self) -> None:
        self._own = psutil.Process()
        self._before, self._own_before = psutil.cpu_times(percpu=True), sum(self._own.cpu_times()[:2])
        self._start = time.monotonic()

    def share(self) -> float | None:
        """The share so far; None where the system does not say, or the time is too short to be counted in its ticks."""
        own_s, passed = sum(self._own.cpu_times()[:2]) - self._own_before, time.monotonic() - self._start
        after = psutil.cpu_times(percpu=True)
        allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(len(after)))
        watched = [pair for index, pair in enumerate(zip(self._before, after, strict=False)) if index in allowed]
        if not watched or passed < _LEAST_WATCH_S:
            return None
        in_use_s = sum(min(passed, _busy_s(late) - _busy_s(early)) for early, late in watched)
        return float(min(1.0, max(0.0, in_use_s - own_s) / (passed * len(watched))))


class ThrottleWatch:
    """Gathers why a GPU's clocks were low while networks were timed; on the CPU it sees nothing.

    Args:
        provider: ONNX Runtime execution provider that is timed.
        device_index: index of the CUDA device; not used on the CPU.
    """

    def __init__(self, provider: ProviderName, device_index: int) -> None:
        self._provider, self._index = provider, device_index
        self._seen: set[str] | None = None
        self._next = 0.0

    def look(self) -> None:
        """Look, where the last time is a while ago; networks must not be running.

        Raises:
            ProviderError: NVML or the device is not there.
        """
        if self._provider == "cpu" or time.monotonic() < self._next:
            return
        with gpu_handle(self._index) as handle:
            reasons = read_value(throttle_reasons, handle)
        if reasons is not None:
            self._seen = (self._seen or set()) | set(reasons)
        self._next = time.monotonic() + _LOOK_EVERY_S

    def reasons(self) -> dict[str, Any]:
        """All reasons that were seen, as a device's ``throttle_reasons``; nothing on the CPU."""
        if self._provider == "cpu":
            return {}
        return {"throttle_reasons": None if self._seen is None else sorted(self._seen)}


def _busy_s(times: Any) -> float:
    """Seconds that a core worked: all but idling and waiting; guests are in user time already."""
    return float(sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq", "steal")))


def latency_versions() -> dict[str, str]:
    """Versions of the libraries that a latency depends on."""
    # onnxruntime comes in several distributions, so only the module knows its version.
    return {"onnxruntime": ort.__version__} | library_versions("torch", "numpy", "onnx")


def available_cores() -> int:
    """Physical cores that this process may use: no more than its affinity mask has logical ones."""
    physical = psutil.cpu_count(logical=False) or psutil.cpu_count(logical=True) or 1
    # macOS has no affinity mask.
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else physical
    return min(physical, allowed)


def _cpu_name() -> str:
    """The model name; Python's own ``platform.processor()`` is empty or only 'x86_64' on Linux."""
    table = Path("/proc/cpuinfo")
    if table.exists():
        for line in table.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
