"""A limit on what a factory may allocate, for networks that are built as a stranger's file says."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from pruneport.errors import SourceError

__all__ = ["SizeLimit"]

_MAKES = frozenset(
    {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.randint, torch.randperm}
    | {torch.eye, torch.arange, torch.linspace, torch.logspace}
)


class SizeLimit(TorchFunctionMode):
    """Refuses, before memory is taken, to make more numbers than expected; all of a network's layers start so.

    Args:
        most: Numbers in all tensors together.

    Example:
        >>> with SizeLimit(1000):
        ...     layer = torch.nn.Linear(10, 10)
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most, self._made = most, 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if function in _MAKES:
            self._made += function(*args, **_without_memory(named)).numel()
            if self._made > self._most:
                raise SourceError(
                    f"the network would be far larger than the weights are of: over {self._most} numbers. The plan was "
                    "damaged or edited; compress again."
                )
        return function(*args, **named)


def _without_memory(named: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a function that makes a tensor, for one that has a shape alone."""
    kept = {name: value for name, value in named.items() if name not in ("generator", "out", "pin_memory")}
    return {**kept, "device": "meta"}
