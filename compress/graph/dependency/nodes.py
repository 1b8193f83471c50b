"""What our dependency graph is made of: hubs, edges between axes and hubs, and how positions map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch_pruning
from torch import nn
from torch_pruning import _helpers
from torch_pruning.dependency import Dependency, Node
from torch_pruning.pruner import function

from pruneport.compress.graph.coupling import Key
from pruneport.compress.graph.dependency.channel_axes import ChannelAxes
from pruneport.compress.graph.groups import Group
from pruneport.compress.resize.layers import axis_size
from pruneport.errors import PruningError

__all__ = [
    "ChannelDependency",
    "Hub",
    "HubPruner",
    "TablePruner",
    "UnwrappedAxis",
    "also_called",
    "in_order",
    "to_positions",
    "to_units",
]


class ChannelDependency(Dependency):  # type: ignore[misc]
    """An edge between an axis of a layer and a hub.

    Attributes:
        key: The axis that triggers it; None where a hub does.
        others: Further functions that mean this axis.
    """

    key: Key | None = None
    others: frozenset[Any] = frozenset()

    def __init__(self, trigger: Any, handler: Any, source: Node, target: Node, mapping: Callable[..., Any]) -> None:
        super().__init__(trigger, handler, source, target)
        self.index_mapping = [mapping, None]

    def is_triggered_by(self, pruning_fn: Any) -> bool:
        """Whether pruning by the function prunes this axis."""
        return bool(pruning_fn == self.trigger) or pruning_fn in self.others


class Hub(nn.Module):
    """Stands between the layers of a coupled group; its indices are units."""

    def __init__(self, group: Group) -> None:
        super().__init__()
        self.group, self.units = group, frozenset(group.units)

    def extra_repr(self) -> str:
        """How it is printed."""
        return f"{self.group.name}, {self.group.width} units"


class UnwrappedAxis(nn.Module):
    """A dimension of a parameter or buffer that no layer owns."""

    def __init__(self, name: str, axis: str) -> None:
        super().__init__()
        self.name, self.axis = name, axis

    def extra_repr(self) -> str:
        """How it is printed."""
        return f"{self.name}, {self.axis}"


class TablePruner(function.BasePruningFunc):  # type: ignore[misc]
    """Names the two sides of a layer that torch-pruning has no pruner for, or one that takes both for the same."""

    def prune_out_channels(self, layer: nn.Module, idxs: Sequence[int]) -> Any:
        """Not used: a ``ChannelGroup`` shrinks its layers together."""
        raise PruningError("a layer cannot be shrunk by itself here: call `prune()` on its group.")

    def prune_in_channels(self, layer: nn.Module, idxs: Sequence[int]) -> Any:
        """Not used, either."""
        return self.prune_out_channels(layer, idxs)

    def get_out_channels(self, layer: nn.Module) -> int | None:
        """Outputs of the layer; None where it has no such axis."""
        return axis_size(layer, "channels") or None

    def get_in_channels(self, layer: nn.Module) -> int | None:
        """Inputs of the layer; None where it has no such axis."""
        return axis_size(layer, "in") or None


class HubPruner(torch_pruning.ops.DummyPruner):  # type: ignore[misc]
    """Names a hub, on which nothing is removed."""


def to_units(axes: ChannelAxes, key: Key, units: frozenset[int]) -> Callable[..., list[Any]]:
    """Map positions on an axis to those of a hub's units that lie there."""

    def to_units(idxs: Sequence[Any]) -> list[Any]:
        there = axes.units(key)
        found = (_helpers._HybridIndex(there[i.idx], i.root_idx) for i in idxs if there[i.idx] in units)
        return list(dict.fromkeys(found))

    return to_units


def to_positions(axes: ChannelAxes, key: Key) -> Callable[..., list[Any]]:
    """Map units to their positions on an axis; the positions of the first layer are dealt out among them in order."""

    def to_positions(idxs: Sequence[Any]) -> list[Any]:
        roots: dict[int, list[int]] = {}
        for index in idxs:
            roots.setdefault(index.idx, []).append(index.root_idx)
        places = axes.places(key)
        return [
            _helpers._HybridIndex(position, of[place * len(of) // len(places[unit])])
            for unit, of in roots.items()
            for place, position in enumerate(places[unit])
        ]

    return to_positions


def in_order(item: Any, roots: Sequence[int]) -> Any:
    """The same positions of a layer, ascending, each with the place among ``roots`` that it goes with.

    Importances add up over layers by that place, and some sort the positions of a layer without it.
    """
    place = {root: number for number, root in enumerate(roots)}
    pairs = sorted(zip(item.idxs, item.root_idxs, strict=True))
    ordered = _helpers.GroupItem(item.dep, [position for position, _ in pairs])
    ordered.root_idxs = [place[root] for _, root in pairs]
    return ordered


def also_called(layer: nn.Module, axis: str) -> frozenset[Any]:
    """Functions beside a layer's own that mean its axis: torch-pruning decides by the sizes of the moment."""
    if not isinstance(layer, torch_pruning.ops.TORCH_CONV) or axis == "in":
        return frozenset()
    outputs = {function.prune_conv_out_channels, function.prune_depthwise_conv_out_channels}
    return frozenset(outputs | ({function.prune_conv_in_channels} if axis == "channels" else set()))
