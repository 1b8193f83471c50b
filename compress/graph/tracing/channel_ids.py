"""Channel ids: numbers of single positions on the axes of layers, and which of them must be removed together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from pruneport.arrays import IntArray

__all__ = ["ChannelIds", "ChannelLabels", "varying_dimensions"]

Key = tuple[str, str]
"""Layer and axis; of an unwrapped parameter or buffer the axis is "flat": every entry has an id."""


class ChannelIds:
    """Numbers positions from 1 on (0 stands for none) and joins them into units, step by step."""

    def __init__(self) -> None:
        self.offsets: dict[Key, int] = {}
        self.sizes: dict[Key, int] = {}
        self._roots = np.zeros(1, dtype=np.int64)

    def register(self, key: Key, size: int) -> Tensor:
        """Number the positions of an axis, once; return their numbers (size,)."""
        if key not in self.offsets:
            start = len(self._roots)
            self.offsets[key], self.sizes[key] = start, size
            self._roots = np.concatenate([self._roots, np.arange(start, start + size)])
        start = self.offsets[key]
        return torch.arange(start, start + self.sizes[key])

    def of(self, key: Key) -> IntArray:
        """The unit of every position of an axis: (size,), equal numbers for what goes together."""
        return self._roots[self.offsets[key] : self.offsets[key] + self.sizes[key]]

    def roots(self, labels: Tensor) -> Tensor:
        """The unit of each id: the id of one channel that stands for all."""
        return torch.from_numpy(self._roots)[labels]

    def key_of(self, channel_id: int) -> Key:
        """The axis that a channel is on."""
        return next(key for key, start in self.offsets.items() if start <= channel_id < start + self.sizes[key])

    def join(self, left: Tensor, right: Tensor) -> None:
        """Join two arrays of ids, place by place of their broadcast shape; zeros join nothing."""
        pairs = self._roots[np.stack([side.ravel() for side in np.broadcast_arrays(left.numpy(), right.numpy())])]
        pairs = pairs[:, (pairs[0] != pairs[1]) & (pairs != 0).all(0)]
        if not pairs.size:
            return
        nodes, places = np.unique(pairs, return_inverse=True)
        rows, columns = places.reshape(pairs.shape)
        graph = coo_array((np.ones(len(rows), dtype=bool), (rows, columns)), shape=(len(nodes),) * 2)
        _, component = connected_components(graph, directed=False)
        first = np.full(component.max() + 1, np.iinfo(np.int64).max)
        np.minimum.at(first, component, nodes)
        renamed = np.arange(len(self._roots))
        renamed[nodes] = first[component]
        self._roots = renamed[self._roots]


@dataclass(frozen=True, eq=False)
class ChannelLabels:
    """Channel ids of a tensor's entries, int64; ``unwrapped``: those of a parameter that no layer owns.

    The units of a parameter that a layer owns change along one dimension only.
    """

    ids: Tensor
    unwrapped: bool = False

    def compact(self) -> Tensor:
        """The labels with every dimension along which they were expanded narrowed to one."""
        ids = self.ids
        for dim, stride in enumerate(ids.stride()):
            ids = ids.narrow(dim, 0, 1) if stride == 0 and ids.shape[dim] > 1 else ids
        return ids

    def line(self, dim: int) -> Tensor:
        """One id for each place along a dimension: (size,); 0 where the whole place belongs to no channel."""
        compact = self.compact()
        dim %= compact.ndim
        first = compact
        for other in reversed(range(compact.ndim)):
            if other != dim:
                first = first.select(other, 0)
        if not first.all():  # padding lies there
            others = [other for other in range(compact.ndim) if other != dim]
            first = compact.amax(others) if others else compact
        return first.expand(self.ids.shape[dim])

    def rows(self, dim: int) -> Tensor:
        """All ids at each place along a dimension: (size, n)."""
        compact = self.compact().movedim(dim, 0)
        return compact.reshape(compact.shape[0], -1).expand(self.ids.shape[dim], -1)


def varying_dimensions(numbers: Tensor) -> tuple[int, ...]:
    """The dimensions along which the numbers are not all the same."""
    return tuple(
        dim
        for dim, size in enumerate(numbers.shape)
        if size > 1 and bool((numbers != numbers.select(dim, 0).unsqueeze(dim)).any())
    )
