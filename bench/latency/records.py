"""What a bundle says was timed (bench.json): read by a schema, since card and report are drawn from it."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from pruneport.documents import Size, check_document

__all__ = ["read_measured"]

_Milliseconds = Annotated[float, msgspec.Meta(ge=1e-6, le=1e9)]
_Times = Annotated[float, msgspec.Meta(ge=1e-9, le=1e9)]
_Leaf = bool | int | float | str | None
_Named = dict[str, _Leaf | list[_Leaf]]
_Details = dict[str, _Leaf | list[_Leaf] | dict[str, _Leaf | list[_Leaf] | _Named]]


class _Latency(msgspec.Struct):
    """Times of one network at one batch size."""

    samples_ms: Annotated[list[_Milliseconds], msgspec.Meta(min_length=1)]
    p50_ms: _Milliseconds
    p90_ms: _Milliseconds
    p99_ms: _Milliseconds
    images_per_s: Annotated[float, msgspec.Meta(ge=0)]


class _Speedup(msgspec.Struct):
    """How many times as fast the pruned network is, with its interval."""

    ratio: _Times
    low: _Times
    high: _Times
    confidence: Annotated[float, msgspec.Meta(gt=0, lt=1)]


class _Batch(msgspec.Struct):
    """Both networks at one batch size."""

    batch: Size
    dense: _Latency
    pruned: _Latency
    speedup: _Speedup


class _Measured(msgspec.Struct):
    """What bench.json holds; what it holds besides is not drawn."""

    provider: str
    device: _Details
    settings: _Details
    versions: _Details
    method: str
    batches: Annotated[list[_Batch], msgspec.Meta(min_length=1, max_length=256)]

    def __post_init__(self) -> None:
        for name in ("cpu_in_use_by_others", "gpu_in_use", "load_average_1min", "available_cores"):
            value = self.device.get(name)
            if value is not None and type(value) not in (int, float):
                raise ValueError(f"expected a number - at `$.device.{name}`")


def read_measured(content: bytes, name: str, advice: str) -> dict[str, Any]:
    """Read bench.json as it is, once it fits.

    Args:
        content: JSON.
        name: What it should be, for messages (see ``load_document``).
        advice: What to do where it is not.

    Raises:
        BundleError: It does not fit the schema, or is of a newer format.
    """
    return check_document(content, _Measured, (1,), name, advice)
