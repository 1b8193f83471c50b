"""What a user says about how latency is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["BenchOptions", "ProviderName"]

ProviderName = Literal["cpu", "cuda", "tensorrt"]


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """How dense and pruned are timed against each other."""

    provider: ProviderName = "cpu"
    """ONNX Runtime execution provider; it must run the whole graph."""
    batches: tuple[int, ...] = (1, 8)
    """Batch sizes to time."""
    repeats: int = 30
    """Timed runs of each network at each batch size, in the order dense, pruned, pruned, dense."""
    warmup: int = 5
    """Runs of each network before the timed ones."""
    threads: int | None = None
    """Threads inside an operator on the CPU; default: the physical cores."""
    device: int = 0
    """Index of the CUDA device."""
    tf32: bool = False
    """Let CUDA convolutions and matrix products use TF32."""
    nhwc: bool = False
    """Let the CUDA provider prefer channels-last convolutions."""
    cuda_graph: bool = False
    """Replay each batch size as a CUDA graph."""
    confidence: float = 0.95
    """Level of the bootstrap interval of the speed-up."""
    require_speedup: float | None = None
    """Fail (exit 1) where the lower end of the interval stays below this at any batch size."""
