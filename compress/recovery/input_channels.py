"""What the inputs of a pruned convolution say of those of the dense one: where the solve of its weights starts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pruneport.compress.activations.least_squares import Equations, chosen_places, output_rows, ridge_of

__all__ = ["InputChannels"]

_ROWS = 20_000  # of all batches, about; the unknowns are channels alone, a few hundred


class InputChannels:
    """The dense network's inputs of a convolution as a linear map of the pruned network's, the same at every place.

    A kernel of 3 x 3 has nine times as many unknowns as it reads channels. Where inputs are few, most of them stay near
    to where the solve starts. So it starts from the dense kernel, read through this map: what a removed channel gave,
    the kept ones that tell of it give in its place. We define; merging filters that are alike (as in Kim et al. 2020,
    arXiv 2010.13160, from weights) is the case in which one channel tells of one other.

    Args:
        kept: The channels that the pruned convolution reads, of those that the dense one does.
        batches: How many.
    """

    def __init__(self, kept: Sequence[int], batches: int) -> None:
        self._kept = torch.as_tensor(kept)
        self._batches, self._limit = batches, _ROWS // batches
        self._dense: list[tuple[Tensor, Tensor] | None] = []
        self._equations: Equations | None = None
        self._generator = torch.Generator().manual_seed(0)

    def wanted(self, layer: nn.Module, inputs: Tensor) -> None:
        """Take what the dense convolution reads in the next batch, (B, C, ...), at random places."""
        if len(self._dense) == self._batches:
            return
        places = chosen_places(layer, inputs, self._limit, self._generator)
        self._dense.append((places, output_rows(layer, inputs, places)))

    def given(self, layer: nn.Module, batch: int, inputs: Tensor) -> None:
        """Take what the pruned one reads in the batch of this index, the first time."""
        seen, self._dense[batch] = self._dense[batch], None
        if seen is None:
            return
        places, wanted = seen
        if self._equations is None:
            self._equations = Equations(inputs.shape[1], wanted.shape[1], inputs.device)
        self._equations.add(output_rows(layer, inputs, places), wanted)

    def read(self, weight: Tensor, ridge: float | None = None, centred: bool = True) -> Tensor:
        """The dense weights (outputs, inputs, ...) as weights (outputs, kept inputs, ...), float64.

        Args:
            weight: Of the dense convolution.
            ridge: Pull of the map towards kept channels that tell of themselves alone; see ``Equations.solve``. None:
                ``ridge_of`` its unknowns and equations.
            centred: Whether an intercept will make up for what the map adds to all places alike; else it adds nothing.
        """
        assert self._equations is not None
        itself = torch.zeros(len(self._kept), weight.shape[1], dtype=torch.float64)
        itself[torch.arange(len(self._kept)), self._kept] = 1
        ridge = ridge_of(len(itself), self._equations.rows) if ridge is None else ridge
        told, _ = self._equations.solve(itself, ridge, centred)
        return torch.einsum("oa...,ka->ok...", weight.to(told), told)
