"""Functions that return sizes to a forward: what they measure, and the answer with other numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from pruneport.compress.sizes.arguments import argument_at
from pruneport.compress.sizes.size_calls import Slots

__all__ = ["QUERIES", "SizeQuery"]


@dataclass(frozen=True)
class SizeQuery:
    """A function that returns sizes.

    Attributes:
        dims: The tensor's dimension behind each number returned: (args, kwargs); None stands for all of them at once.
        replace: The returned value with other numbers: (value, slots).
    """

    dims: Callable[[Any, Any], Sequence[int | None]]
    replace: Callable[[Any, Slots], Any]


def _all_dims(args: Any, kwargs: Any) -> Sequence[int | None]:
    return range(args[0].ndim)


def _asked_dims(args: Any, kwargs: Any) -> Sequence[int | None]:
    dim = argument_at(args, kwargs, 1, "dim")
    return range(args[0].ndim) if dim is None else (dim % args[0].ndim,)


def _replace_sizes(value: Any, slots: Slots) -> Any:
    """A size, or a shape, with other numbers."""
    if not isinstance(value, tuple):  # a tensor where torch.jit traces
        return slots.get(0, value)
    sizes = [slots.get(slot, size) for slot, size in enumerate(value)]
    return torch.Size(sizes) if all(isinstance(size, int) for size in sizes) else tuple(sizes)


_NUMBER = SizeQuery(lambda args, kwargs: (None,), _replace_sizes)

QUERIES: Mapping[Any, SizeQuery] = MappingProxyType(
    {
        Tensor.shape.__get__: SizeQuery(_all_dims, _replace_sizes),  # type: ignore[attr-defined]
        Tensor.size: SizeQuery(_asked_dims, _replace_sizes),
        Tensor.__len__: SizeQuery(lambda args, kwargs: (0,), _replace_sizes),
        Tensor.numel: _NUMBER,
        Tensor.nelement: _NUMBER,
        torch.numel: _NUMBER,
    }
)
