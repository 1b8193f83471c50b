"""A network caught by torch's dynamo exporter, as it is before anything in the graph is changed."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pruneport.errors import ModelError
from pruneport.export.onnx.embedding import Embedding, height_width
from pruneport.export.onnx.form import open_sizes
from pruneport.export.onnx.naming import INPUT_NAME
from pruneport.export.onnx.opsets import CONVERTED
from pruneport.export.onnx.rewrites import PlainAttention
from pruneport.export.options import ExportOptions
from pruneport.models.outputs import Outputs, read_outputs

__all__ = ["capture", "listed", "names_for", "onnx_outputs"]

_DTYPES = {
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.float32, torch.float64),
}
"""Of outputs: what ONNX Runtime gives back as it is."""


def listed(kinds: Mapping[str, str]) -> str:
    """Names with their types, as text: ``count (int), scale (float)``."""
    return ", ".join(f"{name} ({kind})" for name, kind in kinds.items())


def onnx_outputs(value: Any) -> Outputs:
    """What a network returned, under the names that its outputs have in ONNX.

    Raises:
        ModelError: There is no tensor, or one that is not dense, or in an object that cannot be told apart.
    """
    return read_outputs(value, reserved=(INPUT_NAME,))


def capture(
    network: nn.Module,
    shape: tuple[int, int, int],
    options: ExportOptions,
    embedding: Embedding | None = None,
    *,
    half: bool = False,
) -> tuple[Any, Outputs]:
    """Export by torch's exporter, with ``embedding`` before the network where it is given.

    ``half``: a copy of the network computes in float16, between inputs and outputs in float32.

    Returns:
        torch's program, and the outputs that it saw.

    Raises:
        ModelError: An output cannot be exported. What torch's exporter raises comes through as it is.
    """
    batch = options.batch_size_fixed
    dimensions = {0: "batch"} if batch is None else {}
    if open_sizes(options):
        dimensions |= dict(zip(height_width(options.embed_preprocessing), ("height", "width"), strict=True))
    example = torch.zeros(batch or 2, *shape)
    if embedding is not None:
        example = embedding.random_images(batch or 2, shape, torch.Generator().manual_seed(0))
    inner = network
    if half:
        inner = copy.deepcopy(network).half()
        with torch.inference_mode():
            inner(torch.zeros(1 if batch is None else batch, *shape).half())  # the exporter lets types differ
    seen: list[Outputs] = []
    with _silence(), PlainAttention():
        program = torch.onnx.export(
            _Wrapped(inner, embedding, seen.append, half=half),
            (example,),
            dynamo=True,
            verbose=False,
            input_names=[INPUT_NAME],
            opset_version=None if options.opset is None else min(options.opset, CONVERTED),
            dynamic_shapes=({at: torch.export.Dim(name) for at, name in dimensions.items()},) if dimensions else None,
        )
    assert program is not None
    outputs = seen[-1]
    if unknown := {
        name: str(leaf.dtype).removeprefix("torch.")
        for name, leaf in outputs.tensors.items()
        if leaf.dtype not in _DTYPES
    }:
        raise ModelError(
            f"the network's outputs {listed(unknown)} have types that ONNX Runtime does not give back; let its forward "
            "return float32 in their place."
        )
    if batch is None and (single := names_for(network, shape, 1)) not in (None, tuple(outputs.tensors)):
        raise ModelError(
            f"the network returns {', '.join(single or ())} for one image and {', '.join(outputs.tensors)} for two; an "
            "ONNX file has the same outputs for every batch. Return one tensor for all images, or export for one "
            "batch size alone with `batch_size_fixed=N`."
        )
    return program, outputs


def names_for(network: nn.Module, shape: tuple[int, int, int], batch: int) -> tuple[str, ...] | None:
    """Names of the outputs for so many images; None where it fails, which comparing the outputs names."""
    try:
        with torch.no_grad():
            return tuple(onnx_outputs(network(torch.zeros(batch, *shape))).tensors)
    except Exception:  # a forward may raise anything
        return None


class _Wrapped(nn.Module):
    """A network with one argument and its tensors as a tuple, whatever its own forward takes and returns.

    What is embedded stands beside the network, not around it, so that the network's names stay as they are.
    """

    def __init__(
        self, network: nn.Module, embedding: Embedding | None, see: Callable[[Outputs], None], *, half: bool
    ) -> None:
        super().__init__()
        self.network = network
        self.preprocessing = embedding
        self.training = network.training
        self._see = see
        self._half = half

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        inputs = images if self.preprocessing is None else self.preprocessing(images)
        outputs = onnx_outputs(self.network(inputs.half() if self._half else inputs))
        if self._half:
            tensors = {
                name: leaf.float() if leaf.dtype == torch.half else leaf for name, leaf in outputs.tensors.items()
            }
            outputs = Outputs(tensors, outputs.others)
        self._see(outputs)
        return tuple(outputs.tensors.values())


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Without what torch's tracers say in pages on the way to an error that we say in a line."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")  # and the exporter prints graphs on stderr
            yield
    finally:
        logging.disable(disabled)
