"""A network that loses units: which may go, which are gone, and its layers and forwards as they are now."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from pruneport.compress.graph.coupling import Coupling
from pruneport.compress.graph.dependency.channel_axes import ChannelAxes
from pruneport.compress.graph.dependency.fitted_forwards import FittedForwards
from pruneport.compress.graph.groups import Group
from pruneport.compress.graph.module_attributes import ForwardChanges
from pruneport.compress.resize.layers import narrow, ties_kept
from pruneport.errors import PruningError

__all__ = ["Shrinking"]


class Shrinking:
    """Removes units from a network in place.

    Args:
        network: Before anything is removed.
        coupling: Of the network.
        groups: Its groups.

    Attributes:
        axes: Which unit lies at which position now.
    """

    def __init__(self, network: nn.Module, coupling: Coupling, groups: Sequence[Group]) -> None:
        self.axes = ChannelAxes(coupling)
        self._network, self._forwards = network, FittedForwards(network, coupling)
        self._group_of = {unit: group for group in groups for unit in group.units}
        self._deferred = False

    @property
    def changes(self) -> ForwardChanges:
        """What forwards were told since units were removed."""
        return self._forwards.changes

    def forbid(self, units: Iterable[int]) -> None:
        """Let units never go."""
        for unit in units:
            self._group_of.pop(unit, None)

    def why_dense(self, unit: int) -> str:
        """Why a unit can never be removed, or an empty string."""
        if unit not in self._group_of:
            return "these channels are no layer's to remove"
        group = self._group_of[unit]
        return group.reason or ("its channels leave the network" if group.role == "output" else "")

    def blocks_of(self, unit: int) -> int:
        """Equal runs that the unit's group must lose as many of each (see ``Group.blocks``)."""
        return self._group_of[unit].blocks if unit in self._group_of else 1

    def why_not(self, units: Iterable[int]) -> str:
        """Why these units cannot be removed now, or an empty string."""
        lost = self.axes.removed.union(units)
        groups = dict.fromkeys(self._group_of.get(unit) for unit in units)
        reasons = {self.why_dense(unit) for unit in units}
        for group in groups:
            if group is not None:
                runs = [
                    sum(unit not in lost for unit in group.units[start : start + group.width // group.blocks])
                    for start in range(0, group.width, group.width // group.blocks)
                ]
                if not sum(runs):
                    reasons.add(f"nothing of {group.name} would be left")
                elif len(set(runs)) > 1:
                    reasons.add(f"{group.name} must lose as many from each of its {group.blocks} channel groups")
        return "; ".join(sorted(reasons - {""}))

    @contextmanager
    def fitted_once(self, dense_numbers: bool = False) -> Iterator[None]:
        """Tell forwards of their new sizes once, when the block ends, and not after each group.

        Args:
            dense_numbers: See ``fit_forwards``.
        """
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        self._forwards.fit(self.axes.removed, dense_numbers)

    def remove(self, units: Iterable[int]) -> None:
        """Remove units from all layers, in place.

        Raises:
            PruningError: They cannot be removed, or a layer cannot be resized.
        """
        lost = set(units)
        if why := self.why_not(lost):
            raise PruningError(f"these channels cannot be pruned: {why}. Choose others, or leave the group dense.")
        kept = self.axes.remove(lost)
        with ties_kept(self._network, kept):
            for name, keep in kept.items():
                narrow(self._network, name, keep)
        if not self._deferred:
            self._forwards.fit(self.axes.removed)
