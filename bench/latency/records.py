"""What was timed: the content of bench.json, typed, and the schema by which it is read for card and report."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import msgspec

from pruneport.documents import Size, check_document
from pruneport.export.options import OnnxPrecision

__all__ = ["BatchTimes", "Latency", "Measured", "PrecisionTimes", "Speedup", "read_measured"]

_Milliseconds = Annotated[float, msgspec.Meta(ge=1e-6, le=1e9)]
_Times = Annotated[float, msgspec.Meta(ge=1e-9, le=1e9)]
_Leaf = bool | int | float | str | None
_Named = dict[str, _Leaf | list[_Leaf]]
_Details = dict[str, _Leaf | list[_Leaf] | dict[str, _Leaf | list[_Leaf] | _Named]]


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Times of one network at one batch size: every round, percentiles, mean, and images a second at the median."""

    samples_ms: Annotated[tuple[_Milliseconds, ...], msgspec.Meta(min_length=1)]
    p50_ms: _Milliseconds
    p90_ms: _Milliseconds
    p99_ms: _Milliseconds
    mean_ms: float
    images_per_s: Annotated[float, msgspec.Meta(ge=0)]


@dataclass(frozen=True, kw_only=True)
class Speedup:
    """How many times as fast as the dense network the pruned one is, with its confidence interval."""

    ratio: _Times
    low: _Times
    high: _Times
    confidence: Annotated[float, msgspec.Meta(gt=0, lt=1)]


@dataclass(frozen=True, kw_only=True)
class PrecisionTimes:
    """Both networks in another precision, timed in the same rounds.

    Attributes:
        precision: Of the files.
        dense: Times of the dense network.
        pruned: Times of the pruned network.
        dense_speedup: Of this dense network over the dense one in fp32.
        pruned_speedup: Of this pruned network over the dense one in fp32: pruning and precision together.
        speedup: Of this pruned network over this dense one; None in files from before that was measured.
    """

    precision: OnnxPrecision
    dense: Latency
    pruned: Latency
    dense_speedup: Speedup
    pruned_speedup: Speedup
    speedup: Speedup | None = None


@dataclass(frozen=True, kw_only=True)
class BatchTimes:
    """Both networks at one batch size, in fp32 and in the other precisions that were timed.

    Attributes:
        batch: The batch size.
        dense: Times of the dense network.
        pruned: Times of the pruned network.
        speedup: Dense over pruned.
        device: Load, clocks and power as the timed rounds left them, and what others used of the cores meanwhile.
        precisions: The same in fp16 and int8.
    """

    batch: Size
    dense: Latency
    pruned: Latency
    speedup: Speedup
    device: _Details = field(default_factory=dict)
    precisions: Annotated[tuple[PrecisionTimes, ...], msgspec.Meta(max_length=8)] = ()


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What bench.json holds.

    Attributes:
        created: When, in ISO format.
        provider: Of ONNX Runtime.
        device: Processor and GPU, and what else they did before any session was opened.
        settings: Everything that the times depend on.
        versions: Of libraries.
        method: In words.
        batches: One entry a batch size.
    """

    format_version: int = 1
    created: str
    provider: str
    device: _Details
    settings: _Details
    versions: _Details
    method: str
    batches: Annotated[tuple[BatchTimes, ...], msgspec.Meta(min_length=1, max_length=256)]

    def __post_init__(self) -> None:
        for name in ("cpu_in_use_by_others", "gpu_in_use", "load_average_1min", "available_cores"):
            for device in (self.device, *(entry.device for entry in self.batches)):
                value = device.get(name)
                if value is not None and type(value) not in (int, float):
                    raise ValueError(f"expected a number - at `$.device.{name}`")
        for entry in self.batches:
            reasons = entry.device.get("throttle_reasons")
            if reasons is not None and not (
                isinstance(reasons, list) and all(isinstance(each, str) for each in reasons)
            ):
                raise ValueError("expected a list of text - at `$.batches.device.throttle_reasons`")

    @property
    def speedup(self) -> Speedup:
        """Of the smallest batch size that was timed."""
        return min(self.batches, key=lambda entry: entry.batch).speedup

    def to_dict(self) -> dict[str, Any]:
        """The content of bench.json; where fp32 alone was timed, it says nothing of precisions."""
        content = asdict(self)
        for entry in content["batches"]:
            if not entry["precisions"]:
                del entry["precisions"]
        return content


def read_measured(content: bytes, name: str, advice: str) -> dict[str, Any]:
    """Read bench.json as it is, once it fits.

    Args:
        content: JSON.
        name: What it should be, for messages (see ``load_document``).
        advice: What to do where it is not.

    Raises:
        BundleError: It does not fit the schema, or is of a newer format.
    """
    return check_document(content, Measured, (1,), name, advice)
