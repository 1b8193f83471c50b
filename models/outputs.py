"""What a network returns: a tensor, or tensors in lists, tuples and mappings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["tensor_leaves"]


def tensor_leaves(value: Any) -> list[Tensor]:
    """Every tensor in ``value``, in order; what is no tensor is left out."""
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [leaf for item in items for leaf in tensor_leaves(item)]
