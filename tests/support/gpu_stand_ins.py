"""Stand-ins for what only a machine with a GPU has: the driver's library, and ONNX Runtime's GPU providers.

They end where our code meets the library: networks are computed by the real ONNX Runtime, on the CPU.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pynvml
import pytest


class FakeNvml:
    """Stands in for the driver's library: one board, which does not report its persistence mode."""

    def __init__(self) -> None:
        self.open = 0
        self.count = 1
        self.prefix = "GPU-"
        self.handles: list[Any] = []
        self.throttled = (
            pynvml.nvmlClocksThrottleReasonSwPowerCap
            | pynvml.nvmlClocksThrottleReasonSwThermalSlowdown
            | pynvml.nvmlClocksThrottleReasonGpuIdle
        )

    @classmethod
    def installed(cls, monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
        """In place of the driver's library."""
        fake = cls()
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        for name in dir(pynvml):
            if name.startswith(("nvmlInit", "nvmlShutdown", "nvmlDeviceGet", "nvmlSystemGet")):
                monkeypatch.setattr(pynvml, name, getattr(fake, name))
        return fake

    def __getattr__(self, name: str) -> Any:
        return lambda *_: self._values()[name]

    def _values(self) -> dict[str, Any]:
        return {
            "nvmlDeviceGetName": "NVIDIA Test",
            "nvmlDeviceGetUUID": "GPU-1",
            "nvmlSystemGetDriverVersion": "580.1",
            "nvmlSystemGetCudaDriverVersion_v2": 13020,
            "nvmlDeviceGetEnforcedPowerLimit": 700_000,
            "nvmlDeviceGetPowerUsage": 81_500,
            "nvmlDeviceGetTemperature": 30,
            "nvmlDeviceGetCurrentClocksThrottleReasons": self.throttled,
            "nvmlDeviceGetComputeRunningProcesses": [SimpleNamespace(pid=os.getpid()), SimpleNamespace(pid=1)],
            "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=75, memory=10),
        }

    def nvmlDeviceGetCount(self) -> int:
        return self.count

    def nvmlInit(self) -> None:
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        if index > 0:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return f"index {index}"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if not uuid.startswith(self.prefix):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        self.handles.append(uuid)
        return uuid

    def nvmlDeviceGetClockInfo(self, handle: Any, clock: int) -> int:
        return {pynvml.NVML_CLOCK_SM: 1200, pynvml.NVML_CLOCK_MEM: 2600}[clock]

    def nvmlDeviceGetMaxClockInfo(self, handle: Any, clock: int) -> int:
        return {pynvml.NVML_CLOCK_SM: 1980, pynvml.NVML_CLOCK_MEM: 3201}[clock]

    def nvmlDeviceGetPersistenceMode(self, handle: Any) -> int:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)


class GpuRuntime:
    """ONNX Runtime with a GPU: it records how sessions are opened, and captures and replays CUDA graphs.

    A graph belongs to the binding of the session's first run, as TensorRT's does, whatever is bound later.

    Attributes:
        opened: Of every session, its provider, the provider's options and the session's configuration.
        alive: Sessions that are there now.
        replays: Whether a replay computes anything.
        fails: What a run raises.
    """

    def __init__(self) -> None:
        self.opened: list[tuple[str, dict[str, str], dict[str, str]]] = []
        self.alive: list[int] = [0]
        self.replays, self.fails = True, ""

    @classmethod
    def installed(cls, monkeypatch: pytest.MonkeyPatch) -> GpuRuntime:
        """In place of ONNX Runtime's GPU providers; variables that are set in the environment are taken back."""
        runtime = cls()
        monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "")
        monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")
        monkeypatch.setattr(ort, "get_available_providers", lambda: [*_PROVIDERS, "CPUExecutionProvider"])
        monkeypatch.setattr(ort, "preload_dlls", lambda: None)
        monkeypatch.setattr(ort, "SessionOptions", _SessionOptions)
        monkeypatch.setattr(ort, "OrtValue", _OrtValue)
        monkeypatch.setattr(ort, "InferenceSession", lambda *given, **more: _Session(runtime, *given, **more))
        return runtime


_PROVIDERS = ("TensorrtExecutionProvider", "CUDAExecutionProvider")
_STRICT = "session.disable_cpu_ep_fallback"
_RealSession, _RealOptions, _RealValue = ort.InferenceSession, ort.SessionOptions, ort.OrtValue


class _SessionOptions(_RealOptions):  # type: ignore[misc]
    """On the CPU there is nothing to fall back from."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: dict[str, str] = {}

    def add_session_config_entry(self, key: str, value: str) -> None:
        self.entries[key] = value
        if key != _STRICT:
            super().add_session_config_entry(key, value)


class _OrtValue:
    """The GPU's memory is not the array's."""

    @staticmethod
    def ortvalue_from_numpy(array: Any, device: str, index: int) -> Any:
        value = _RealValue.ortvalue_from_shape_and_type(array.shape, array.dtype)
        value.update_inplace(np.ascontiguousarray(array))
        return value

    @staticmethod
    def ortvalue_from_shape_and_type(shape: Sequence[int], kind: Any, device: str, index: int) -> Any:
        return _RealValue.ortvalue_from_shape_and_type(shape, kind)


class _Session(_RealSession):  # type: ignore[misc]
    def __init__(
        self, runtime: GpuRuntime, path: str, settings: _SessionOptions, providers: Any, enable_fallback: int
    ) -> None:
        ((self._name, self._options),) = providers
        runtime.opened.append((self._name, self._options, settings.entries))
        self._runtime, self._captured = runtime, None
        self._graph = "1" in (self._options.get("enable_cuda_graph"), self._options.get("trt_cuda_graph_enable"))
        runtime.alive[0] += 1
        super().__init__(path, settings, providers=["CPUExecutionProvider"])

    def __del__(self) -> None:
        self._runtime.alive[0] -= 1

    def run_with_iobinding(self, binding: Any, run_options: Any = None) -> None:
        if self._runtime.fails:
            raise RuntimeError(self._runtime.fails)
        replayed, self._captured = self._captured, self._captured or binding
        if replayed is None or self._runtime.replays:
            super().run_with_iobinding(replayed if self._graph and replayed else binding, run_options)

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        return {self._name: self._options}

    def get_providers(self) -> list[str]:
        return [self._name]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        return [
            SimpleNamespace(ep_name=self._name, get_nodes=part.get_nodes)
            for part in super().get_provider_graph_assignment_info()
        ]
