"""The axes of a network's layers while it loses channels: which unit lies at which position now."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable

from pruneport.compress.graph.coupling import Coupling, Key

__all__ = ["ChannelAxes"]


class ChannelAxes:
    """Which unit lies at which position of each axis; positions move up as units are removed.

    Args:
        coupling: Of the dense network.

    Attributes:
        removed: The units that were removed.
    """

    def __init__(self, coupling: Coupling) -> None:
        self.removed: set[int] = set()
        self._units = {key: [0] * size for key, size in coupling.sizes.items()}
        self._keys = {unit: tuple(axes) for unit, axes in coupling.units.items()}
        self._places: dict[Key, dict[int, list[int]]] = {}
        for unit, axes in coupling.units.items():
            for key, positions in axes.items():
                for position in positions:
                    self._units[key][position] = unit

    def units(self, key: Key) -> list[int]:
        """The unit at each position of an axis; 0 where the position can never go, as an input of the network."""
        return self._units[key]

    def places(self, key: Key) -> dict[int, list[int]]:
        """Unit -> the positions that it occupies on an axis, ascending."""
        if key not in self._places:
            places: dict[int, list[int]] = defaultdict(list)
            for position, unit in enumerate(self._units[key]):
                places[unit].append(position)
            self._places[key] = dict(places)
        return self._places[key]

    def positions(self, key: Key, units: Iterable[int]) -> list[int]:
        """The positions that some units occupy on an axis, unit by unit."""
        places = self.places(key)
        return [position for unit in units for position in places[unit]]

    def remove(self, units: Collection[int]) -> dict[str, dict[str, list[int]]]:
        """Take units away from all their axes; return the positions kept, by layer and axis."""
        kept: dict[str, dict[str, list[int]]] = defaultdict(dict)
        for key in dict.fromkeys(key for unit in units for key in self._keys[unit]):
            name, axis = key
            kept[name][axis] = [position for position, unit in enumerate(self._units[key]) if unit not in units]
            self._units[key] = [unit for unit in self._units[key] if unit not in units]
            self._places.pop(key, None)
        self.removed.update(units)
        return dict(kept)
