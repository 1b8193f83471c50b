"""What a user says about how latency is measured, and where work that can be spread is done."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = [
    "SWITCHES",
    "BenchOptions",
    "ExecutorName",
    "ExecutorOptions",
    "LatencyOptions",
    "PlaceOptions",
    "ProviderName",
    "RuntimeOptions",
    "TimedPrecision",
]

ProviderName = Literal["cpu", "cuda", "tensorrt"]
ExecutorName = Literal["local", "ray"]
TimedPrecision = Literal["fp32", "fp16", "int8"]
_EXPECTED_GIB = 3.0
SWITCHES = ("tf32", "nhwc", "fuse_conv_bias", "small_workspace", "cuda_graph")
"""Options of ``RuntimeOptions`` that are on or off, and change latencies on a GPU."""


@dataclass(frozen=True, kw_only=True)
class ExecutorOptions:
    """Where pieces of work that need nothing of each other are done."""

    executor: ExecutorName = "local"
    """local: on this machine. ray: spread over a Ray cluster (pip install ray), whose machines must see the same files
    under the same paths."""
    address: str | None = None
    """Of the Ray cluster; default: one is started on this machine."""
    memory: float | None = None
    """GiB that one piece of work is expected to need; default: 3."""

    @property
    def expected_gib(self) -> float:
        """What one piece of work is expected to need."""
        return _EXPECTED_GIB if self.memory is None else self.memory


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions:
    """Where networks are timed, and how often."""

    provider: ProviderName = "cpu"
    """ONNX Runtime execution provider; it must run the whole graph."""
    repeats: int = 30
    """Timed runs of each network at each batch size, in the order dense, pruned, pruned, dense; on a GPU blocks of runs
    in that order, for 3 seconds or more."""
    warmup: int = 5
    """Runs of each network before the timed ones; on a GPU for a second or more."""
    threads: int | None = None
    """Threads inside an operator on the CPU; default: the physical cores."""
    device: int = 0
    """Index of the CUDA device."""
    tf32: bool = False
    """Let convolutions and matrix products of float32 use TF32, on CUDA as on TensorRT."""
    nhwc: bool = False
    """Let the CUDA provider prefer channels-last convolutions."""
    fuse_conv_bias: bool = False
    """Let the CUDA provider compile a convolution and its bias into one kernel."""
    small_workspace: bool = False
    """Bound the memory that CUDA convolutions choose their kernels by; without it they take all that they ask for."""
    cuda_graph: bool = False
    """Replay each batch size as a CUDA graph."""


@dataclass(frozen=True, kw_only=True)
class BenchOptions(RuntimeOptions):
    """How dense and pruned are timed against each other."""

    batches: tuple[int, ...] = (1, 8)
    """Batch sizes to time."""
    confidence: float = 0.95
    """Level of the bootstrap interval of the speed-up."""
    require_speedup: float | None = None
    """Fail (exit 1) where the lower end of the interval stays below this at any batch size."""


@dataclass(frozen=True, kw_only=True)
class PlaceOptions(RuntimeOptions):
    """What a latency target means."""

    latency_batch: int = 1
    """Batch size at which a latency target holds."""
    latency_precision: TimedPrecision | None = None
    """Precision in which a latency target holds: the shares are of the dense network in the same; default: int8 where
    `precisions` has it, on a GPU fp16 where it has that, else fp32. fp16 is for GPUs."""


@dataclass(frozen=True, kw_only=True)
class LatencyOptions(PlaceOptions):
    """What a latency target means, and where the timings behind it come from."""

    latency_table: Path | None = None
    """A table that `pruneport latency` made: the latency target holds on the machine where it was made. On another
    machine than this one it is predicted and not measured."""
    latency_cache: Path | None = None
    """Folder in which timings of this machine are kept for the next time; default: the system's folder for caches."""
