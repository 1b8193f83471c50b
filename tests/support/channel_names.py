"""Channels by the names that ``follow`` gives them: a layer's, and the position on its axis."""

from __future__ import annotations

__all__ = ["A", "named", "pairs"]


def named(layer: str, count: int) -> list[str]:
    return [f"{layer}{place}" for place in range(count)]


def pairs(left: str, right: str, count: int) -> list[set[str]]:
    return [{f"{left}{place}", f"{right}{place}"} for place in range(count)]


A = named("a", 4)
"""The channels of the small network's first layer."""
