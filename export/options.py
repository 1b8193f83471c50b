"""What a user says about how the exported network is checked."""

from __future__ import annotations

from dataclasses import dataclass

from pruneport.models.options import ImageOptions

__all__ = ["ParityOptions"]


@dataclass(frozen=True, kw_only=True)
class ParityOptions(ImageOptions):
    """Inputs on which torch and ONNX Runtime must agree."""

    parity_batches: tuple[int, ...] = (1, 3, 8)
    """Batch sizes of the seeded inputs on which torch and ONNX Runtime are compared."""
