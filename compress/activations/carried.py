"""Activations of a network's middle, held for all batches: where they were made while there is room, else in files."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from pruneport.compress.activations.memory import room_on

__all__ = ["Carried"]


class Carried:
    """One tensor a batch, in the place of the one before.

    Args:
        batches: How many are put.
    """

    def __init__(self, batches: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="pruneport-replay-")
        self._batches = batches
        self._held: dict[int, Tensor] = {}
        self._device = torch.device("cpu")

    def put(self, index: int, tensor: Tensor) -> None:
        """Keep a copy as the batch's."""
        self._device = tensor.device
        self._held.pop(index, None)
        self._file(index).unlink(missing_ok=True)
        if room_on(tensor.device) > tensor.nbytes * (self._batches - len(self._held)):
            self._held[index] = tensor.clone()
        else:
            torch.save(tensor.clone(), self._file(index))

    def get(self, index: int) -> Tensor:
        """A copy that may be written into, where the tensor was computed."""
        held = self._held.get(index)
        if held is not None:
            return held.clone()
        return torch.load(self._file(index), weights_only=True).to(self._device)  # type: ignore[no-any-return]

    def clear(self) -> None:
        """Forget all."""
        self._held.clear()
        self._folder.cleanup()

    def _file(self, index: int) -> Path:
        return Path(self._folder.name) / f"{index}.pt"
