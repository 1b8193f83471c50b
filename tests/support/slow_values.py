"""Values of a parameter of which only some are tried by ``make test``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

__all__ = ["each_quick"]


def each_quick(values: Iterable[Any], number: int, *more: pytest.MarkDecorator) -> list[Any]:
    """All values, or tuples of them: the first of each ``number`` as it is, the others marked slow, and ``more``."""
    return [
        pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=[pytest.mark.slow, *more])
        if position % number
        else value
        for position, value in enumerate(values)
    ]
