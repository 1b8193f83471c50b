"""A group of torch-pruning's that shrinks its layers together, by our table."""

from __future__ import annotations

from collections.abc import Sequence

import torch_pruning

from pruneport.compress.graph.dependency.nodes import Hub
from pruneport.errors import PruningError

__all__ = ["ChannelGroup"]


class ChannelGroup(torch_pruning.dependency.Group):  # type: ignore[misc]
    """Layers of a ``ChannelGraph`` that lose channels together, and where in each of them."""

    @property
    def units(self) -> tuple[int, ...]:
        """Numbers of the units, in the graph's coupling."""
        return tuple(unit for dep, units in self._group if isinstance(dep.target.module, Hub) for unit in units)

    def prune(self, idxs: Sequence[int] | None = None, record_history: bool = True) -> None:
        """Shrink all layers of the group, in place, with attributes that hold widths, sizes and scales of attention.

        Args:
            idxs: Other positions of the first layer; those that the group was made for where not given.
            record_history: Whether the graph remembers it (see ``pruning_history``).

        Raises:
            PruningError: They cannot be removed; nothing has changed then.
        """
        if idxs is not None:
            self._DG.get_pruning_group(self[0].dep.target.module, self[0].dep.handler, idxs).prune(None, record_history)
            return
        root = self[0]
        if not root.idxs:  # as pruners ask for, where they choose nothing
            return
        name = self._DG._module2name[root.dep.target.module]
        if not self.units:
            raise PruningError(f"these channels of {name} cannot be pruned: they are no layer's to remove.")
        self._DG.shrinking.remove(self.units)
        if record_history:
            side = self._DG.is_out_channel_pruning_fn(root.dep.trigger)
            self._DG._pruning_history.append([name, side, list(root.idxs)])
