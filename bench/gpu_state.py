"""What a GPU says of itself while networks are timed: why its clocks are low, who else uses it, which libraries run."""

from __future__ import annotations

import ctypes
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pynvml

__all__ = ["gpu_library_versions", "loaded_libraries", "other_processes", "throttle_reasons"]

_MAPS = Path("/proc/self/maps")
_REASONS = {  # that no work is there is left out: it is no reason to doubt a timing
    "application_clocks": pynvml.nvmlClocksThrottleReasonApplicationsClocksSetting,
    "power_cap": pynvml.nvmlClocksThrottleReasonSwPowerCap,
    "hardware_slowdown": pynvml.nvmlClocksThrottleReasonHwSlowdown,
    "sync_boost": pynvml.nvmlClocksThrottleReasonSyncBoost,
    "thermal_slowdown": pynvml.nvmlClocksThrottleReasonSwThermalSlowdown,
    "hardware_thermal_slowdown": pynvml.nvmlClocksThrottleReasonHwThermalSlowdown,
    "hardware_power_brake": pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown,
    "display_clocks": pynvml.nvmlClocksThrottleReasonDisplayClockSetting,
}


def throttle_reasons(handle: Any) -> list[str]:
    """Why the clocks are lower than they could be, now.

    Args:
        handle: NVML's, of a GPU.

    Raises:
        pynvml.NVMLError: The GPU does not say.
    """
    bits = int(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
    return [name for name, bit in _REASONS.items() if bits & bit]


def other_processes(handle: Any) -> int:
    """How many other processes compute on the GPU.

    In a container NVML may name processes by their ids outside of it, or none: this one is then counted, or nothing is.

    Args:
        handle: NVML's, of a GPU.

    Raises:
        pynvml.NVMLError: The GPU does not say.
    """
    running = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    return sum(int(process.pid) != os.getpid() for process in running)


def loaded_libraries() -> dict[str, str]:
    """Shared libraries in this process, from name (libcudnn) to path; empty where the system does not show them."""
    if not _MAPS.is_file():
        return {}
    paths = re.findall(r"(/\S*/(lib[\w+-]+)\.so[.\d]*)$", _MAPS.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: path for path, name in paths}


def gpu_library_versions() -> dict[str, str]:
    """Versions of CUDA's runtime, cuDNN and TensorRT, as the libraries in this process themselves say.

    How each counts: cuda_runtime_api.h (1000 x major + 10 x minor), cudnn_version.h and NvInferVersion.h (10000 x major
    + 100 x minor + patch, since cuDNN 9 and TensorRT 10).
    """
    loaded, versions = loaded_libraries(), {}
    with suppress(KeyError, OSError, AttributeError):
        number = ctypes.c_int()
        ctypes.CDLL(loaded["libcudart"]).cudaRuntimeGetVersion(ctypes.byref(number))
        versions["cuda"] = f"{number.value // 1000}.{number.value % 1000 // 10}"
    for name, library, function in (
        ("cudnn", "libcudnn", "cudnnGetVersion"),
        ("tensorrt", "libnvinfer", "getInferLibVersion"),
    ):
        with suppress(KeyError, OSError, AttributeError):
            said = int(getattr(ctypes.CDLL(loaded[library]), function)())
            versions[name] = f"{said // 10000}.{said // 100 % 100}.{said % 100}"
    return versions
