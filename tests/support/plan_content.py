"""plan.json as its parsed content."""

from __future__ import annotations

from typing import Any

__all__ = ["first_pruned"]


def first_pruned(content: dict[str, Any]) -> dict[str, Any]:
    """The first group that loses units."""
    group: dict[str, Any] = next(group for group in content["groups"] if group["kept"] is not None)
    return group
