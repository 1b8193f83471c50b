"""Calibration inputs as ONNX Runtime's quantiser reads them: arrays by the name of the file's input."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from onnxruntime.quantization import CalibrationDataReader
from torch import Tensor

from pruneport.arrays import AnyArray
from pruneport.compress.activations.calibration import Batches
from pruneport.export.cpu_session import filled
from pruneport.export.onnx.embedding import Embedding
from pruneport.models.inputs import tensors_in
from pruneport.progress import Progress, Step, silent

__all__ = ["CalibrationReader", "OnePart", "as_taken"]


class CalibrationReader(CalibrationDataReader):  # type: ignore[misc]
    """Reads inputs once, in parts of one size.

    Args:
        name: Of the file's input.
        batches: The network's inputs (B, C, H, W), loaded as they are called for.
        size: Inputs in a part; the last one repeats its last input to be full.
        embedding: What the file holds before the network, which then takes images.
        progress: Told how far it is.
    """

    def __init__(
        self, name: str, batches: Batches, size: int, embedding: Embedding | None = None, progress: Progress = silent
    ) -> None:
        self._name = name
        self._parts = self._read(batches, size, embedding, progress)

    def get_next(self) -> dict[str, AnyArray] | None:
        """The next part; None after the last."""
        part = next(self._parts, None)
        return None if part is None else {self._name: part.numpy()}

    @staticmethod
    def _read(batches: Batches, size: int, embedding: Embedding | None, progress: Progress) -> Iterator[Tensor]:
        for number, load in enumerate(batches):
            progress(Step(f"calibrating int8, batch {number + 1} of {len(batches)}", number, len(batches)))
            for part in torch.split(tensors_in(load())[0], size):
                yield as_taken(filled(part, size), embedding)


class OnePart(CalibrationDataReader):  # type: ignore[misc]
    """Reads one part.

    Args:
        part: Arrays by the names of the file's inputs.
    """

    def __init__(self, part: dict[str, AnyArray]) -> None:
        self._parts = iter([part])

    def get_next(self) -> dict[str, AnyArray] | None:
        """The part, then nothing."""
        return next(self._parts, None)


def as_taken(inputs: Tensor, embedding: Embedding | None) -> Tensor:
    """What a file takes for the network's inputs (B, C, H, W): these, or the images that they were made of."""
    return (inputs if embedding is None else embedding.restored(inputs)).contiguous()
