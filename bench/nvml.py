"""A GPU as NVML sees it: which board a CUDA device is, what stays of it, and what changes with its load."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pynvml

from pruneport.bench.gpu_state import other_processes, throttle_reasons
from pruneport.errors import ProviderError

__all__ = ["describe_gpu", "gpu_handle", "read_value", "sample_gpu"]


@contextmanager
def gpu_handle(device_index: int) -> Iterator[Any]:
    """NVML's handle of a CUDA device, or None where it may be any of several, with NVML initialised around it.

    Raises:
        ProviderError: NVML cannot be loaded, or has no such device.
    """
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise ProviderError(
            f"No NVIDIA GPU can be used here: NVML says '{error}'. "
            "Install the NVIDIA driver (in a container: run it with GPU access), or use the provider 'cpu'."
        ) from error
    try:
        yield _handle(device_index)
    finally:
        pynvml.nvmlShutdown()


def _handle(device_index: int) -> Any:
    """NVML's handle of a CUDA device; None where it cannot be told which board that is."""
    # NVML counts every board in PCI order; CUDA counts what CUDA_VISIBLE_DEVICES leaves, fastest first.
    # Only the UUID names the same board in both, and torch is how Python learns it; a torch without CUDA does not.
    uuid, count = _cuda_uuid(device_index), pynvml.nvmlDeviceGetCount()
    if uuid is None and (count > 1 or "CUDA_VISIBLE_DEVICES" in os.environ):
        return None
    try:
        return pynvml.nvmlDeviceGetHandleByIndex(device_index) if uuid is None else _handle_by_uuid(uuid)
    except pynvml.NVMLError as error:
        raise ProviderError(
            f"No CUDA device {device_index}: NVML says '{error}' and counts {count} GPU(s), numbered from 0. "
            "Choose another device, or look at CUDA_VISIBLE_DEVICES."
        ) from error


def _handle_by_uuid(uuid: str) -> Any:
    """NVML's handle of a whole board, or of the slice of one that CUDA sees under MIG."""
    try:
        return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except pynvml.NVMLError:
        return pynvml.nvmlDeviceGetHandleByUUID(f"MIG-{uuid}")


def _cuda_uuid(device_index: int) -> str | None:
    """UUID of a CUDA device without NVML's prefix, or None where torch sees no such device."""
    import torch  # slow to import, and only GPUs need it

    if not torch.cuda.is_available() or device_index >= torch.cuda.device_count():
        return None
    return str(torch.cuda.get_device_properties(device_index).uuid)


def describe_gpu(handle: Any) -> dict[str, Any]:
    """What of a GPU stays the same while networks are timed; ``handle`` is from ``gpu_handle``."""
    cuda = pynvml.nvmlSystemGetCudaDriverVersion_v2()  # 13020 is CUDA 13.2
    persistence = read_value(pynvml.nvmlDeviceGetPersistenceMode, handle)
    return {
        "gpu": read_value(pynvml.nvmlDeviceGetName, handle),
        "gpu_uuid": read_value(pynvml.nvmlDeviceGetUUID, handle),
        "driver": pynvml.nvmlSystemGetDriverVersion(),
        "cuda_driver": f"{cuda // 1000}.{cuda % 1000 // 10}",
        "sm_clock_max_mhz": read_value(pynvml.nvmlDeviceGetMaxClockInfo, handle, pynvml.NVML_CLOCK_SM),
        "memory_clock_max_mhz": read_value(pynvml.nvmlDeviceGetMaxClockInfo, handle, pynvml.NVML_CLOCK_MEM),
        "power_limit_w": _watts(read_value(pynvml.nvmlDeviceGetEnforcedPowerLimit, handle)),
        "persistence_mode": None if persistence is None else bool(persistence),
    }


def sample_gpu(handle: Any) -> dict[str, Any]:
    """What of a GPU changes with its load; ``handle`` is from ``gpu_handle``."""
    in_use = read_value(pynvml.nvmlDeviceGetUtilizationRates, handle)  # of the last second or less
    return {
        "sm_clock_mhz": read_value(pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_SM),
        "memory_clock_mhz": read_value(pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_MEM),
        "power_w": _watts(read_value(pynvml.nvmlDeviceGetPowerUsage, handle)),
        "temperature_c": read_value(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU),
        "gpu_in_use": None if in_use is None else in_use.gpu / 100,
        "throttle_reasons": read_value(throttle_reasons, handle),
        "gpu_other_processes": read_value(other_processes, handle),
    }


def read_value(query: Callable[..., Any], handle: Any, *arguments: Any) -> Any:
    """One NVML value, or None: laptops, MIG slices and virtual GPUs do not report all, and no handle reports any."""
    if handle is None:
        return None
    try:
        return query(handle, *arguments)
    except pynvml.NVMLError:
        return None


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1000
