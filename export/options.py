"""What a user says about how networks are exported, and how that is checked."""

from __future__ import annotations

from dataclasses import dataclass

from pruneport.models.options import ImageOptions

__all__ = ["ExportOptions", "ParityOptions"]


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """For what the ONNX files are."""

    batch_size_fixed: int | None = None
    """Export for this one batch size, which verify and bench then use; default: for any. For networks that take one
    image at a time, or that torch exports for no other."""


@dataclass(frozen=True, kw_only=True)
class ParityOptions(ImageOptions):
    """Inputs on which torch and ONNX Runtime must agree."""

    parity_batches: tuple[int, ...] = (1, 3, 8)
    """Batch sizes of the seeded inputs on which torch and ONNX Runtime are compared."""
