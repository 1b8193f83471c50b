"""What fvcore counts of operations without weights of a layer: pools, resizing, sampling and functional norms.

Its factors stand in fvcore/nn/flop_count.py and fvcore/nn/jit_handles.py (version 0.1.5).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["elementwise_macs"]

_RESIZE = {"nearest": 1, "bilinear": 4}  # an entry of the output


def elementwise_macs(function: Any, args: Any, kwargs: Any, output: Any) -> int:
    """Multiply-accumulates that fvcore counts for the call of a function; 0 where it counts none."""
    rule = _RULES.get(function)
    return 0 if rule is None or not isinstance(output, Tensor) else rule(args, kwargs, output)


def _argument(args: Any, kwargs: Any, place: int, name: str, default: Any = None) -> Any:
    return args[place] if len(args) > place else kwargs.get(name, default)


def _pool(args: Any, kwargs: Any, output: Tensor) -> int:
    return int(_argument(args, kwargs, 0, "input").numel())


def _resize(args: Any, kwargs: Any, output: Tensor) -> int:
    if output.ndim != 4 or _argument(args, kwargs, 6, "antialias", False):
        return 0
    return _RESIZE.get(_argument(args, kwargs, 3, "mode", "nearest"), 0) * output.numel()


def _sample(args: Any, kwargs: Any, output: Tensor) -> int:
    return 4 * output.numel()


def _norm(weight: int) -> Callable[[Any, Any, Tensor], int]:
    """A norm that measures: 5 an entry with a weight, 4 without."""
    return lambda args, kwargs, output: (
        output.numel() * (5 if _argument(args, kwargs, weight, "weight") is not None else 4)
    )


def _batch_norm(args: Any, kwargs: Any, output: Tensor) -> int:
    """A norm that remembers: 2 an entry with a weight, 1 without."""
    if _argument(args, kwargs, 5, "training", False):
        return _norm(3)(args, kwargs, output)
    return output.numel() * (2 if _argument(args, kwargs, 3, "weight") is not None else 1)


_RULES: Mapping[Any, Callable[[Any, Any, Tensor], int]] = MappingProxyType(
    {
        F.adaptive_avg_pool2d: _pool,
        F.interpolate: _resize,
        F.grid_sample: _sample,
        F.batch_norm: _batch_norm,
        F.layer_norm: _norm(2),
        torch.layer_norm: _norm(2),
        F.group_norm: _norm(2),
        torch.group_norm: _norm(2),
        F.instance_norm: _norm(3),
    }
)
