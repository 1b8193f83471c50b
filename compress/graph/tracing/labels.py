"""Which channels the tensors of one forward pass belong to, and which their values depend on unseen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from pruneport.compress.graph.tracing.channel_ids import ChannelIds, ChannelLabels, varying_dimensions

__all__ = ["Labels"]

_LARGEST_PARAMETER = 2_000_000  # entries; a larger unwrapped parameter is a matrix, not a bias of some kind


@dataclass(frozen=True)
class Lost:
    """Channel ids that values depend on while no labels show it; ``contracted``: as the inputs of a layer do."""

    key: bytes
    contracted: bool


_ENDED = Lost(b"", True)
"""That values depend on channels which are the inputs of no layer any more."""


class Labels:
    """The labels of every tensor, and the channels that it has lost: that it was computed from while no label says so.

    Args:
        network: Its parameters that no layer owns have labels from the start.
        layers: Types whose parameters are theirs.
        channel_ids: Of an earlier pass of the same network, whose numbers are taken over.

    Attributes:
        channel_ids: The ids met so far, and how they are joined.
    """

    def __init__(
        self, network: nn.Module, layers: tuple[type[nn.Module], ...], channel_ids: ChannelIds | None = None
    ) -> None:
        self.channel_ids = channel_ids or ChannelIds()
        self._labels: Any = WeakTensorKeyDictionary()
        self._lost: Any = WeakTensorKeyDictionary()
        self._parts = {_ENDED.key: torch.zeros(0, dtype=torch.long)}
        self._learned = {name for name, _ in network.named_parameters(remove_duplicate=False)}
        self._unwrapped: dict[int, str] = {}
        for name, module in network.named_modules():
            for key, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                small = tensor.is_floating_point() and 1 < tensor.numel() <= _LARGEST_PARAMETER
                if small and not isinstance(module, layers):
                    self._unwrapped.setdefault(id(tensor), f"{name}.{key}".lstrip("."))

    def labels_of(self, tensor: Tensor) -> list[ChannelLabels]:
        """The labels of a tensor's entries; empty where they belong to no channel."""
        known: list[ChannelLabels] | None = self._labels.get(tensor)
        if known is None and id(tensor) in self._unwrapped:
            ids = self.channel_ids.register((self._unwrapped[id(tensor)], "flat"), tensor.numel())
            known = self._labels[tensor] = [ChannelLabels(ids.reshape(tensor.shape), unwrapped=True)]
        return known or []

    def labels_along(self, tensor: Tensor, dim: int) -> ChannelLabels | None:
        """The labels whose units change along the dimension, or those of a single channel."""
        dim %= tensor.ndim
        along = [labels for labels in self.labels_of(tensor) if self._fits(labels, dim)]
        return next((labels for labels in along if not labels.unwrapped), along[0] if along else None)

    def give(self, tensor: Tensor, labels: Sequence[ChannelLabels]) -> None:
        """Set a tensor's labels."""
        self._labels[tensor] = list(labels)

    def give_line(self, tensor: Tensor, dim: int, line: Tensor) -> ChannelLabels:
        """Add labels that change along one dimension: line (size,)."""
        shape = [1] * tensor.ndim
        shape[dim] = -1
        added = ChannelLabels(line.reshape(shape).expand(tensor.shape))
        self._labels.setdefault(tensor, []).append(added)
        return added

    def varies(self, labels: ChannelLabels) -> tuple[int, ...]:
        """The dimensions along which the unit changes; where all have become one unit, those of the ids."""
        compact = labels.compact()
        units = varying_dimensions(self.channel_ids.roots(compact))
        if units or labels.unwrapped:
            return units
        elements = varying_dimensions(compact)
        return (max(elements, key=lambda dim: (compact.shape[dim], dim)),) if elements else ()

    def same_memory(self, tensor: Tensor) -> Tensor | None:
        """A known tensor with the same entries in the same memory."""
        place = _memory(tensor)
        return next((other for other in list(self._labels) if other is not tensor and _memory(other) == place), None)

    def is_parameter(self, labels: ChannelLabels) -> bool:
        """Whether the labels are of a parameter that is no layer's, and not of a buffer."""
        elements = labels.ids[labels.ids != 0]
        return labels.unwrapped and len(elements) > 0 and self.channel_ids.key_of(int(elements[0]))[0] in self._learned

    def lost(self, tensor: Tensor) -> frozenset[Lost]:
        """Channel ids that the tensor's values depend on, though no entry's label says so."""
        lost: frozenset[Lost] = self._lost.get(tensor, frozenset())
        return lost

    def lose(self, outputs: Sequence[Tensor], labels: Tensor, contracted: bool = False) -> None:
        """Note that values were computed from these channels, and that the labels of the outputs do not show it.

        Args:
            outputs: What was computed.
            labels: Their ids, of any shape.
            contracted: Whether they were summed over in a product with a learned matrix, as the inputs of a layer are.
        """
        part = torch.unique(labels[labels != 0])
        if len(part):
            key = part.numpy().tobytes()
            self._parts.setdefault(key, part)
            for tensor in outputs:
                self._lost[tensor] = self.lost(tensor) | {Lost(key, contracted)}

    def carry(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """What the inputs have lost, the outputs have lost, and so has the tensor that one is a view of."""
        if carried := frozenset().union(*map(self.lost, inputs)):
            for tensor in outputs:
                self._lost[tensor] = self.lost(tensor) | carried

    def contract(self, output: Tensor) -> None:
        """A product with a learned matrix: what was lost before is its input, and what was an input ends."""
        if lost := self.lost(output):
            self._lost[output] = frozenset(Lost(one.key, True) for one in lost if not one.contracted) | {_ENDED}

    def end(self, output: Tensor) -> None:
        """A layer made the output: nothing before it counts."""
        if self.lost(output):
            self._lost[output] = frozenset()

    def ids_lost(self, tensor: Tensor, contracted: bool) -> list[Tensor]:
        """The channel ids behind ``lost``."""
        return [self._parts[one.key] for one in self.lost(tensor) if one.contracted == contracted]

    def _fits(self, labels: ChannelLabels, dim: int) -> bool:
        varies = self.varies(labels)
        return dim in varies if labels.unwrapped else varies == (dim,) or (not varies and labels.ids.shape[dim] == 1)


def _memory(tensor: Tensor) -> tuple[Any, ...]:
    """Where a tensor lies in memory: equal for two views of the same entries."""
    return tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride()
