"""From a torch network to ONNX: torch's dynamo exporter, for any batch or for one, with outputs named as in torch."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pruneport.errors import ExportError, InputError, ModelError
from pruneport.export.onnx.rewrites import INPUT_NAME, PlainAttention, name_values, part_pads_from_pools
from pruneport.models.outputs import Outputs, read_outputs, takes_several

__all__ = ["INPUT_NAME", "OnnxNetwork", "check_fixed_batch", "export_network", "listed", "onnx_outputs"]

_INLINE_LIMIT_BYTES = 1_800_000_000  # a protobuf holds at most 2 GiB
_REASON = 300  # characters of what torch says; of a detector it is pages
_DTYPES = {
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.float32, torch.float64),
}
"""Of outputs: what ONNX Runtime gives back as it is."""


@dataclass(frozen=True, kw_only=True)
class OnnxNetwork:
    """A network as ONNX in memory; its weights are the torch network's own.

    Attributes:
        batch: The one batch size that it takes, or None where it takes any.
        outputs: Names of its outputs, in order.
        left_out: What the torch network returns besides tensors: type by name.
    """

    batch: int | None
    outputs: tuple[str, ...]
    left_out: Mapping[str, str]
    _program: Any

    def save(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Write the file; weights beyond 1.8 GB go to ``path`` + ".data".

        Args:
            path: The .onnx file.
            metadata: Stands in the file's metadata with the prefix ``pruneport.``, beside the names of the outputs,
                what is left out, and the batch size where it is fixed.
        """
        model = self._program.model
        said = {**metadata, "outputs": json.dumps(self.outputs)}
        if self.left_out:
            said["left_out"] = listed(self.left_out)
        if self.batch is not None:
            said["batch_size_fixed"] = str(self.batch)
        model.metadata_props.update({f"pruneport.{key}": value for key, value in said.items()})
        size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
        self._program.save(str(path), external_data=size > _INLINE_LIMIT_BYTES)


def check_fixed_batch(batch: int | None) -> None:
    """Raise an ``InputError`` where so many images are no batch."""
    if batch is not None and batch < 1:
        raise InputError(f"`batch_size_fixed` is {batch}; expected at least 1, or leave it out for any batch size.")


def listed(kinds: Mapping[str, str]) -> str:
    """Names with their types, as text: ``count (int), scale (float)``."""
    return ", ".join(f"{name} ({kind})" for name, kind in kinds.items())


def onnx_outputs(value: Any) -> Outputs:
    """What a network returned, under the names that its outputs have in ONNX.

    Raises:
        ModelError: There is no tensor, or one that is not dense, or in an object that cannot be told apart.
    """
    return read_outputs(value, reserved=(INPUT_NAME,))


def export_network(network: nn.Module, shape: tuple[int, int, int], batch: int | None = None) -> OnnxNetwork:
    """Export ``network`` for inputs (B, C, H, W), B being ``batch``, or any.

    Args:
        network: In eval mode.
        shape: C, H, W.
        batch: The one batch size that the file is for; None: it takes any.

    Raises:
        ExportError: The exporter cannot express the network, or only for one batch size; an output has a type that
            cannot be exported.
    """
    kind = type(network).__name__
    if batch is None and not takes_several(network, shape):
        raise ExportError(
            f"{kind} takes one image at a time: its forward fails on a batch of two. Take the batch size from the "
            "input's shape wherever it is needed, or export for single images with `batch_size_fixed=1`."
        )
    try:
        program, outputs = _capture(network, shape, batch)
    except Exception as error:  # torch's exporter raises what the network raises, as a cause, and much else
        fault = next((str(found) for found in (error, error.__cause__) if isinstance(found, ModelError)), "")
        raise ExportError(fault or _why_not(network, shape, batch, error)) from error
    dimensions = program.model.graph.inputs[0].shape
    if batch is None and dimensions is not None and isinstance(dimensions[0], int):
        raise ExportError(
            f"torch exports {kind} for a batch of {dimensions[0]} only: its forward turns the batch size into a "
            "number. Take it from the input's shape wherever it is needed, and as a torch size, or export for one "
            "batch size alone with `batch_size_fixed=N`."
        )
    graph = program.model.graph
    part_pads_from_pools(graph)
    for node in graph.all_nodes():
        node.metadata_props.clear()  # stack traces with the paths of this machine
    name_values(graph, tuple(outputs.tensors))
    return OnnxNetwork(batch=batch, outputs=tuple(outputs.tensors), left_out=outputs.others, _program=program)


def _capture(network: nn.Module, shape: tuple[int, int, int], batch: int | None) -> tuple[Any, Outputs]:
    """Export by torch's exporter; returns the program and the outputs that it saw."""
    example = torch.zeros(batch or 2, *shape)
    seen: list[Outputs] = []
    with _silence(), PlainAttention():
        program = torch.onnx.export(
            _Wrapped(network, seen.append),
            (example,),
            dynamo=True,
            verbose=False,
            input_names=[INPUT_NAME],
            dynamic_shapes=({0: torch.export.Dim("batch")},) if batch is None else None,
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
    if batch is None and (single := _names_for_one(network, shape)) not in (None, tuple(outputs.tensors)):
        raise ModelError(
            f"the network returns {', '.join(single or ())} for one image and {', '.join(outputs.tensors)} for two; an "
            "ONNX file has the same outputs for every batch. Return one tensor for all images, or export for one "
            "batch size alone with `batch_size_fixed=N`."
        )
    return program, outputs


def _names_for_one(network: nn.Module, shape: tuple[int, int, int]) -> tuple[str, ...] | None:
    """Names of the outputs for one image; None where it fails, which comparing the outputs names."""
    try:
        with torch.no_grad():
            return tuple(onnx_outputs(network(torch.zeros(1, *shape))).tensors)
    except Exception:  # a forward may raise anything
        return None


def _why_not(network: nn.Module, shape: tuple[int, int, int], batch: int | None, error: Exception) -> str:
    """Say why torch cannot export the network, and what can be done."""
    reason = (str(error.__cause__ or error).strip().splitlines() or [repr(error)])[0]
    if len(reason) > _REASON:
        reason = f"{reason[:_REASON]} …"
    kind = type(network).__name__
    if batch is not None and batch > 1 and not takes_several(network, shape):
        return f"{kind} takes one image at a time, not {batch}: give `batch_size_fixed=1`."
    if batch is not None:
        return (
            f"torch cannot export {kind} for a batch of {batch}: {reason}. Make its forward free of control flow that "
            "depends on values."
        )
    said = (
        f"torch cannot export {kind} with a dynamic batch: {reason}. Make its forward free of control flow that "
        "depends on values, and of sizes taken as Python numbers."
    )
    with contextlib.suppress(Exception):
        _capture(network, shape, 1)
        said += " For one batch size alone it can be exported: give `batch_size_fixed=N`."
    return said


class _Wrapped(nn.Module):
    """A network with one argument and its tensors as a tuple, whatever its own forward takes and returns."""

    def __init__(self, network: nn.Module, see: Callable[[Outputs], None]) -> None:
        super().__init__()
        self.network = network
        self.training = network.training
        self._see = see

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs = onnx_outputs(self.network(images))
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
