"""So many of what lies in an order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

__all__ = ["evenly"]

T = TypeVar("T")


def evenly(items: Sequence[T], count: int) -> list[T]:
    """Take so many, the first of each of as many equal runs: sorted by class, all classes are among them.

    Args:
        items: What is taken from, in its order.
        count: How many, at most ``len(items)``.
    """
    return [items[place * len(items) // count] for place in range(count)]
