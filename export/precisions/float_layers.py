"""Layers of an int8 file that stay in float: what the file says of them, and how a user names them."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

__all__ = ["FloatLayers", "counted_layers", "matching"]

_LAYERS, _REASON = "float_layers", "float_reason"
_LISTED = 10


@dataclass(frozen=True, kw_only=True)
class FloatLayers:
    """Layers that stay in float.

    Attributes:
        layers: Their names; where they were measured, the one that costs most comes first.
        nodes: The nodes of the graph that belong to them.
        reason: Why, as a sentence; empty where there are none.
    """

    layers: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    reason: str = ""

    def __str__(self) -> str:
        """In words."""
        shown = ", ".join(self.layers[:_LISTED]) + (f" and {len(self.layers) - _LISTED} more" if self._more else "")
        return f"{counted_layers(len(self.layers))} in float: {shown}. {self.reason}"

    @property
    def _more(self) -> bool:
        return len(self.layers) > _LISTED

    def metadata(self) -> dict[str, str]:
        """For the ONNX file."""
        return {_LAYERS: json.dumps(self.layers), _REASON: self.reason} if self.layers else {}

    @classmethod
    def read(cls, metadata: Mapping[str, str]) -> FloatLayers:
        """What an ONNX file says of itself; whatever else stands there is no list of layers."""
        try:
            layers = json.loads(metadata.get(_LAYERS, "[]"))
        except ValueError:
            layers = []
        if not isinstance(layers, list):
            layers = []
        return cls(layers=tuple(str(name) for name in layers), reason=metadata.get(_REASON, ""))


def matching(names: Collection[str], patterns: Collection[str]) -> list[str]:
    """Those of some modules that match a shell pattern, or lie in a module that does."""
    return [
        name
        for name in names
        if any(fnmatch.fnmatchcase(outer, pattern) for outer in _outer(name) for pattern in patterns)
    ]


def _outer(name: str) -> Iterator[str]:
    """A module and all that it lies in."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def counted_layers(count: int) -> str:
    """How many layers, in words."""
    return f"{count} layer{'' if count == 1 else 's'}"
