"""What a network returns, tensor by tensor, and how far two of them are apart."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["kind_of", "leaves", "relative_error", "run"]


def run(network: Callable[[Tensor], Any], inputs: Tensor) -> Any:
    """What it returns; noise is the same each time."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return network(inputs)


def leaves(value: Any, path: str = "") -> list[tuple[str, Any]]:
    """Everything in what a network returns, with the way to it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, Mapping):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return [leaf for key, item in value.items() for leaf in leaves(item, f"{path}[{key!r}]")]
    if isinstance(value, list | tuple):
        return [leaf for place, item in enumerate(value) for leaf in leaves(item, f"{path}[{place}]")]
    return [(path or "0", value)]


def kind_of(leaf: Any) -> Any:
    return (leaf.dtype, leaf.ndim) if isinstance(leaf, Tensor) else type(leaf)


def relative_error(one: Tensor, other: Tensor) -> float:
    """The largest difference by the largest value; infinite values must be at the same places."""
    if not one.is_floating_point() or one.numel() == 0:
        return 0.0 if torch.equal(one, other) else math.inf
    difference = torch.where(one == other, 0, one - other).abs().max().item()
    largest = torch.where(other.isfinite(), other, 0).abs().max().item()
    return difference / largest if largest else math.inf if difference else 0.0
