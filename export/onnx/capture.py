"""A network caught by torch's dynamo exporter, as it is before anything in the graph is changed."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pruneport.errors import ModelError
from pruneport.export.onnx.detectors import traceable_detectors, translations
from pruneport.export.onnx.embedding import Embedding, height_width
from pruneport.export.onnx.form import open_sizes
from pruneport.export.onnx.opsets import CONVERTED
from pruneport.export.onnx.rewrites import PlainAttention
from pruneport.export.options import ExportOptions
from pruneport.models.inputs import INPUT_NAME, InputShape, InputSpec, changed, inputs_of, run_on, tensors_in
from pruneport.models.outputs import Outputs, detections_in, read_outputs

__all__ = ["capture", "finds_boxes", "listed", "names_for", "onnx_outputs"]

_DTYPES = {
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.float32, torch.float64),
}
"""Of outputs: what ONNX Runtime gives back as it is."""


def listed(kinds: Mapping[str, str]) -> str:
    """Names with their types, as text: ``count (int), scale (float)``."""
    return ", ".join(f"{name} ({kind})" for name, kind in kinds.items())


def onnx_outputs(value: Any, inputs: Sequence[str] = (INPUT_NAME,)) -> Outputs:
    """What a network returned, under the names that its outputs have in ONNX, beside ``inputs`` of other names.

    Raises:
        ModelError: There is no tensor, or one that is not dense, or in an object that cannot be told apart.
    """
    return read_outputs(value, reserved=inputs)


def capture(
    network: nn.Module,
    shape: InputShape,
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
    inputs = inputs_of(shape)
    example = tuple(tensors_in(inputs.filled(batch or 2)))
    if embedding is not None and (size := inputs.image_shape):
        example = (embedding.random_images(batch or 2, size, torch.Generator().manual_seed(0)),)
    axes = [dimensions if tensor.batched else {} for tensor in inputs.tensors]
    inner = network
    if half:
        inner = copy.deepcopy(network).half()
        with torch.inference_mode():
            run_on(inner, changed(inputs.filled(batch or 1), _halved))  # the exporter lets types differ
    seen: list[Outputs] = []
    with _silence(), PlainAttention(), traceable_detectors(network):
        program = torch.onnx.export(
            _Wrapped(inner, inputs, embedding, seen.append, half=half),
            example,
            dynamo=True,
            verbose=False,
            input_names=list(inputs.names),
            custom_translation_table=translations(),
            opset_version=None if options.opset is None else min(options.opset, CONVERTED),
            dynamic_shapes=(tuple(map(_dynamic, axes)),) if dimensions else None,
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


def _dynamic(axes: Mapping[int, str]) -> dict[int, Any] | None:
    """What torch is told of a tensor's dimensions."""
    return {at: torch.export.Dim(name) for at, name in axes.items()} or None


def names_for(network: nn.Module, shape: InputShape, batch: int) -> tuple[str, ...] | None:
    """Names of the outputs for so many images; None where it fails, which comparing the outputs names."""
    inputs = inputs_of(shape)
    try:
        with torch.no_grad():
            return tuple(onnx_outputs(run_on(network, inputs.filled(batch)), inputs.names).tensors)
    except Exception:  # a forward may raise anything
        return None


def finds_boxes(network: nn.Module, shape: InputShape) -> bool:
    """Whether it is a detector (see ``detections_in``); found by running it."""
    try:
        with torch.no_grad():
            return bool(detections_in(onnx_outputs(run_on(network, inputs_of(shape).filled(1))).tensors))
    except Exception:  # a forward may raise anything
        return False


class _Wrapped(nn.Module):
    """A network that takes its tensors by position and returns a tuple of tensors, whatever its own forward does.

    What is embedded stands beside the network, not around it, so that the network's names stay as they are.
    """

    def __init__(
        self,
        network: nn.Module,
        inputs: InputSpec,
        embedding: Embedding | None,
        see: Callable[[Outputs], None],
        *,
        half: bool,
    ) -> None:
        super().__init__()
        self.network = network
        self.preprocessing = embedding
        self.training = network.training
        self._inputs, self._see = inputs, see
        self._half = half

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        if self.preprocessing is not None:
            tensors = tuple(map(self.preprocessing, tensors))
        if self._half:
            tensors = tuple(map(_halved, tensors))
        outputs = onnx_outputs(run_on(self.network, self._inputs.given(tensors)), self._inputs.names)
        if self._half:
            floats = {
                name: leaf.float() if leaf.dtype == torch.half else leaf for name, leaf in outputs.tensors.items()
            }
            outputs = Outputs(floats, outputs.others)
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


def _halved(tensor: Tensor) -> Tensor:
    """The same in fp16, if it is of floating point."""
    return tensor.half() if tensor.is_floating_point() else tensor
