"""Example inputs of a network: one tensor, several by position, or several by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

__all__ = ["ExampleInputs", "run_on"]

ExampleInputs = Tensor | Sequence[Any] | Mapping[str, Any]
"""A tensor; a list or tuple of arguments; or a dict of named arguments."""


def run_on(network: nn.Module, example: ExampleInputs) -> Any:
    """What the network returns for its example inputs."""
    if isinstance(example, Tensor):
        return network(example)
    return network(**example) if isinstance(example, Mapping) else network(*example)
