"""The forwards of a network that loses channels: what they are told each time."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from pruneport.compress.graph.coupling import Coupling
from pruneport.compress.graph.module_attributes import ForwardChanges, fit_forwards, held_attributes, rescale_keys
from pruneport.compress.resize.hardcoded_widths import replace_sizes, replaced_sizes, restore_sizes

__all__ = ["FittedForwards"]


class FittedForwards:
    """What the forwards of a network are told while it shrinks.

    Args:
        network: Before anything is removed; its modules are changed in place.
        coupling: What its forward does.

    Attributes:
        changes: What the forwards are told now.
    """

    def __init__(self, network: nn.Module, coupling: Coupling) -> None:
        self.changes = ForwardChanges(attributes={}, sizes={})
        self._network, self._coupling = network, coupling
        self._held = held_attributes(network, coupling)
        self._sizes = replaced_sizes(network)
        self._removed: frozenset[int] = frozenset()

    def fit(self, removed: Collection[int], dense_numbers: bool = False) -> None:
        """Let every forward ask for the sizes that are there, and scale as it did.

        Args:
            removed: All units that the network has lost.
            dense_numbers: See ``fit_forwards``.
        """
        before = self._removed
        changes = fit_forwards(self._held, self._coupling, lambda unit: unit not in removed, dense_numbers)
        modules = dict(self._network.named_modules())
        for name, changed in self.changes.attributes.items():
            for attribute in changed:
                setattr(modules[name], attribute, self._held[name][attribute])
        for name, values in changes.attributes.items():
            for attribute, value in values.items():
                listed = isinstance(self._held[name][attribute], list)
                setattr(modules[name], attribute, list(value) if listed else value)  # type: ignore[arg-type]
        restore_sizes(self._network, self._sizes)
        replace_sizes(self._network, changes.sizes)
        rescale_keys(self._network, self._coupling, lambda unit: unit not in removed, lambda unit: unit not in before)
        self.changes, self._removed = changes, frozenset(removed)
