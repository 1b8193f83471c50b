"""Numbers as people read them."""

from __future__ import annotations

__all__ = ["scaled"]

_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def scaled(number: float, unit: str = "", digits: str = ".2f") -> str:
    """A count with an SI prefix, and whole below a thousand.

    Args:
        number: At least 0.
        unit: What is counted.
        digits: Format of the scaled number.

    Example:
        >>> scaled(4_089_184_256, "B")
        '4.09 GB'
    """
    for factor, prefix in _PREFIXES:
        if number >= factor:
            return f"{number / factor:{digits}} {prefix}{unit}"
    return f"{number:.0f} {unit}".strip()
