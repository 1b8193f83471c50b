"""What a bundle says was checked (verify.json): read by a schema, since card and report are drawn from it."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from pruneport.documents import Count, check_document
from pruneport.export.accuracy import Accuracy, Agreement
from pruneport.export.parity import Parity
from pruneport.export.precisions.comparison import Precision
from pruneport.export.verification import Check

__all__ = ["read_verified"]


class _Verified(msgspec.Struct):
    """What verify.json holds; what it holds besides is not drawn."""

    ok: bool
    checks: list[Check]
    parity: list[Parity]
    accuracy: Accuracy | None
    files: dict[str, Count]
    agreement: Agreement | None = None
    max_drop: float | None = None
    precisions: Annotated[list[Precision], msgspec.Meta(max_length=64)] = []

    def __post_init__(self) -> None:
        for entry in self.parity:
            _check_shares(entry.top1_agreement)
        for record in self.precisions:
            _check_count(record.count)
            _check_shares(record.agreement, record.top1)
        if self.agreement is not None:
            _check_count(self.agreement.images)
            _check_shares(self.agreement.top1)
        if (seen := self.accuracy) is not None:
            _check_count(seen.images)
            _check_shares(seen.dense_torch, seen.pruned_torch, seen.pruned_onnx)
            for count in (seen.only_dense, seen.only_pruned):
                if count is not None and not 0 <= count <= seen.images:
                    raise ValueError(f"{count} of {seen.images} images")


def read_verified(content: bytes, name: str, advice: str) -> dict[str, Any]:
    """Read verify.json as it is, once it fits.

    Args:
        content: JSON.
        name: What it should be, for messages (see ``load_document``).
        advice: What to do where it is not.

    Raises:
        BundleError: It does not fit the schema, or is of a newer format.
    """
    return check_document(content, _Verified, (1,), name, advice)


def _check_shares(*shares: float | None) -> None:
    for share in shares:
        if share is not None and not 0 <= share <= 1:
            raise ValueError(f"expected a share from 0 to 1, got {share}")


def _check_count(images: int) -> None:
    if images < 1:
        raise ValueError(f"expected a number of images, got {images}")
