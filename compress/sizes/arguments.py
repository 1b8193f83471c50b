"""Reading the arguments of torch's operators."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

__all__ = ["argument", "argument_at", "nested_tensors", "operator_name"]


def argument(function: Any, args: Any, kwargs: Any, name: str, default: Any = None) -> Any:
    """An operator's argument by its name, however it was given."""
    for place, known in enumerate(function._schema.arguments):
        if known.name == name:
            return args[place] if place < len(args) and not known.kwarg_only else kwargs.get(name, default)
    return default


def argument_at(args: Any, kwargs: Any, place: int, name: str, default: Any = None) -> Any:
    """An argument of a function without a schema, by its place or its name."""
    return args[place] if len(args) > place else kwargs.get(name, default)


def operator_name(function: Any) -> str:
    """``add_`` of aten.add_.Tensor."""
    return str(function).split(".")[1]


def nested_tensors(values: Any) -> list[Tensor]:
    """All tensors in nested arguments, in order."""
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]
