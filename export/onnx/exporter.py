"""From a torch network to ONNX: for any batch or for one, with names as in torch or as asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pruneport.errors import ExportError, ModelError
from pruneport.export.onnx.capture import capture, listed, names_for
from pruneport.export.onnx.embedding import (
    EMBEDDED,
    Embedding,
    embedding_for,
    height_width,
    sizes_in_file,
)
from pruneport.export.onnx.form import file_names, open_sizes, other_size
from pruneport.export.onnx.naming import name_nodes, name_values
from pruneport.export.onnx.opsets import raise_opset
from pruneport.export.onnx.rewrites import leave_out_weight_info, part_pads_from_pools
from pruneport.export.options import DEFAULTS, ExportOptions, OnnxPrecision
from pruneport.models.outputs import takes_several
from pruneport.models.record import Preprocessing

__all__ = ["OnnxNetwork", "export_network"]

_INLINE_LIMIT_BYTES = 1_800_000_000  # a protobuf holds at most 2 GiB
_REASON = 300  # characters of what torch says; of a detector it is pages


@dataclass(frozen=True, kw_only=True)
class OnnxNetwork:
    """A network as ONNX in memory; its weights are the torch network's own.

    Attributes:
        options: What it was exported for.
        shape: C, H, W of the images; H and W may be open.
        outputs: Names of its outputs in torch, in order.
        left_out: What the torch network returns besides tensors: type by name.
        embedding: What stands before the network in the file; None where it takes normalised inputs.
        precision: In which the file computes: fp32 or fp16.
    """

    options: ExportOptions
    shape: tuple[int, int, int]
    outputs: tuple[str, ...]
    left_out: Mapping[str, str]
    embedding: Embedding | None = None
    precision: OnnxPrecision = "fp32"
    _program: Any

    @property
    def batch(self) -> int | None:
        """The one batch size that it takes, or None where it takes any."""
        return self.options.batch_size_fixed

    def save(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Write the file; weights beyond 1.8 GB go to ``path`` + ".data", and all where that was asked for.

        Args:
            path: The .onnx file.
            metadata: Stands in the file's metadata with the prefix ``pruneport.``, beside torch's names of the outputs,
                those chosen for them, what is left out, the batch size where it is fixed, what is embedded, and a size
                of images to run it at where that is open, in the order of the file's input.
        """
        model = self._program.model
        said = {**metadata, "outputs": json.dumps(self.outputs)}
        if self.options.output_names:
            said["output_names"] = json.dumps(self.options.output_names)
        if open_sizes(self.options):
            said["input_shape"] = json.dumps(sizes_in_file(self.options.embed_preprocessing, self.shape))
        if self.embedding is not None:
            said[EMBEDDED] = self.embedding.name
        if self.precision != "fp32":
            said["precision"] = self.precision
        if self.left_out:
            said["left_out"] = listed(self.left_out)
        if self.batch is not None:
            said["batch_size_fixed"] = str(self.batch)
        model.metadata_props.update({f"pruneport.{key}": value for key, value in said.items()})
        size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
        self._program.save(str(path), external_data=self.options.external_data or size > _INLINE_LIMIT_BYTES)


def export_network(
    network: nn.Module,
    shape: tuple[int, int, int],
    options: ExportOptions = DEFAULTS,
    preprocessing: Preprocessing | None = None,
    precision: OnnxPrecision = "fp32",
) -> OnnxNetwork:
    """Export ``network`` for inputs (B, C, H, W), or for the images that these are made of.

    Args:
        network: In eval mode.
        shape: C, H, W.
        options: What the file is to be like; ``check_form`` has passed.
        preprocessing: How images become the network's inputs, for ``embed_preprocessing``.
        precision: fp32, or fp16, whose files take and give float32 all the same.

    Raises:
        ExportError: The exporter cannot express the network, or only for one batch size, one size of image, or another
            opset; an output has a type that cannot be exported.
        InputError: The names do not fit the network's outputs, or the preprocessing cannot be embedded.
    """
    embedding = embedding_for(options.embed_preprocessing, preprocessing, shape)
    kind, batch = type(network).__name__, options.batch_size_fixed
    if batch is None and not takes_several(network, shape):
        raise ExportError(
            f"{kind} takes one image at a time: its forward fails on a batch of two. Take the batch size from the "
            "input's shape wherever it is needed, or export for single images with `batch_size_fixed=1`."
        )
    if options.output_names and (found := names_for(network, shape, batch or 2)):
        file_names(options, found)  # before the work
    if open_sizes(options):
        _require_other_size(network, shape)
    try:
        program, outputs = capture(network, shape, options, embedding, half=precision == "fp16")
    except Exception as error:  # torch's exporter raises what the network raises, as a cause, and much else
        fault = next((str(found) for found in (error, error.__cause__) if isinstance(found, ModelError)), "")
        if precision == "fp16" and _exports(network, shape, options):
            raise ExportError(
                f"torch cannot export {kind} in fp16: {_first_line(error.__cause__ or error)}. Let its forward make "
                "tensors of the type of its input, or leave fp16 out of `precisions`."
            ) from error
        raise ExportError(fault or _why_not(network, shape, options, error)) from error
    _require_open(kind, program, options)
    if options.opset is not None:
        raise_opset(program.model, options.opset)
    graph = program.model.graph
    part_pads_from_pools(graph)
    name_nodes(graph)
    for node in graph.all_nodes():
        node.metadata_props.clear()  # stack traces with the paths of this machine
    names = tuple(outputs.tensors)
    name_values(graph, *file_names(options, names))
    leave_out_weight_info(graph)
    return OnnxNetwork(
        options=options,
        shape=shape,
        outputs=names,
        left_out=outputs.others,
        embedding=embedding,
        precision=precision,
        _program=program,
    )


def _require_open(kind: str, program: Any, options: ExportOptions) -> None:
    """Check that the file's input has no fixed size where one was to stay open.

    Raises:
        ExportError: It has.
    """
    dimensions = program.model.graph.inputs[0].shape
    if dimensions is None:
        return
    if options.batch_size_fixed is None and isinstance(dimensions[0], int):
        raise ExportError(
            f"torch exports {kind} for a batch of {dimensions[0]} only: its forward turns the batch size into a "
            "number. Take it from the input's shape wherever it is needed, and as a torch size, or export for one "
            "batch size alone with `batch_size_fixed=N`."
        )
    sizes = zip(("height", "width"), height_width(options.embed_preprocessing), strict=True)
    fixed = [f"a {name} of {dimensions[place]}" for name, place in sizes if isinstance(dimensions[place], int)]
    if open_sizes(options) and fixed:
        raise ExportError(
            f"torch exports {kind} for {' and '.join(fixed)} only: its forward turns the size of images "
            "into a number. Take it from the input's shape wherever it is needed, and as a torch size, or give "
            "`dynamic=batch`."
        )


def _require_other_size(network: nn.Module, shape: tuple[int, int, int]) -> None:
    """Check that a network takes images of another size.

    Raises:
        ExportError: It does not.
    """
    other = other_size(shape)
    try:
        with torch.no_grad():
            network(torch.zeros(1, *other))
    except Exception as error:  # a forward may raise anything
        raise ExportError(
            f"{type(network).__name__} takes images of {shape[1]} x {shape[2]} and not of {other[1]} x {other[2]}: "
            f"{_first_line(error)}. Its height and width are fixed: give `dynamic=batch`."
        ) from error


def _why_not(network: nn.Module, shape: tuple[int, int, int], options: ExportOptions, error: Exception) -> str:
    """Say why torch cannot export the network, and what can be done."""
    reason = _first_line(error.__cause__ or error)
    kind, batch = type(network).__name__, options.batch_size_fixed
    if batch is not None and batch > 1 and not takes_several(network, shape):
        return f"{kind} takes one image at a time, not {batch}: give `batch_size_fixed=1`."
    if options.opset is not None and _exports(network, shape, replace(options, opset=None)):
        return (
            f"torch cannot export {kind} in opset {options.opset}: {reason}. In torch's own opset it can: give another "
            "`opset`, or leave it out."
        )
    if open_sizes(options) and _exports(network, shape, replace(options, dynamic="batch")):
        return (
            f"torch cannot export {kind} with a dynamic height and width: {reason}. Make its forward free of sizes "
            "taken as Python numbers, or give `dynamic=batch`, with which it can be exported."
        )
    if batch is not None:
        return (
            f"torch cannot export {kind} for a batch of {batch}: {reason}. Make its forward free of control flow that "
            "depends on values."
        )
    said = (
        f"torch cannot export {kind} with a dynamic batch: {reason}. Make its forward free of control flow that "
        "depends on values, and of sizes taken as Python numbers."
    )
    if _exports(network, shape, replace(options, dynamic="batch", batch_size_fixed=1)):
        said += " For one batch size alone it can be exported: give `batch_size_fixed=N`."
    return said


def _exports(network: nn.Module, shape: tuple[int, int, int], options: ExportOptions) -> bool:
    """Whether it can be exported so; found by trying."""
    try:
        capture(network, shape, options)
    except Exception:  # see export_network
        return False
    return True


def _first_line(error: BaseException) -> str:
    """What an error says, in a line."""
    reason = (str(error).strip().splitlines() or [repr(error)])[0].rstrip(".")
    return reason if len(reason) <= _REASON else f"{reason[:_REASON]} …"
