"""From a torch network to ONNX: for any batch or for one, with names as in torch or as asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from pruneport.compress.surgery.dropping import Absent
from pruneport.errors import ExportError, InputError
from pruneport.export.onnx.capture import capture, finds_boxes, names_for
from pruneport.export.onnx.embedding import embedding_for, height_width
from pruneport.export.onnx.form import file_names, open_sizes, other_size
from pruneport.export.onnx.naming import name_nodes, name_values
from pruneport.export.onnx.onnx_network import OnnxNetwork
from pruneport.export.onnx.opsets import raise_opset
from pruneport.export.onnx.rewrites import leave_out_weight_info, part_pads_from_pools
from pruneport.export.onnx.zeros import leave_out_zeros
from pruneport.export.options import DEFAULTS, ExportOptions, OnnxPrecision
from pruneport.models.inputs import InputShape, InputSpec, inputs_of
from pruneport.models.outputs import takes_several
from pruneport.models.record import Preprocessing

__all__ = ["export_network", "fitted_options"]

_REASON = 300  # characters of what torch says; of a detector it is pages


def fitted_options(network: nn.Module, shape: InputShape, options: ExportOptions = DEFAULTS) -> ExportOptions:
    """The options that fit the network: of a detector, one image at a time, where no batch size was asked for.

    In every image a detector finds another number of boxes, so that they have no batch dimension; a file of a fixed
    batch has outputs for each image.

    Raises:
        ExportError: The height and width of a detector are to be open.
    """
    if not finds_boxes(network, shape):
        return options
    if open_sizes(options) and (size := inputs_of(shape).image_shape):
        raise ExportError(
            f"{type(network).__name__} finds boxes in images of {size[1]} x {size[2]}: torch writes this size into "
            "the ONNX file, with the places that boxes start from. Give `dynamic=batch`, and another `input_shape` "
            "for another size."
        )
    return options if options.batch_size_fixed is not None else replace(options, batch_size_fixed=1)


def export_network(
    network: nn.Module,
    shape: InputShape,
    options: ExportOptions = DEFAULTS,
    preprocessing: Preprocessing | None = None,
    precision: OnnxPrecision = "fp32",
) -> OnnxNetwork:
    """Export ``network`` for inputs of this shape, or for the images that these are made of.

    Args:
        network: In eval mode.
        shape: C, H, W of images (B, C, H, W), or what else it takes.
        options: What the file is to be like; ``check_form`` has passed.
        preprocessing: How images become the network's inputs, for ``embed_preprocessing``.
        precision: fp32, or fp16, whose files take and give float32 all the same.

    Raises:
        ExportError: The exporter cannot express the network, or only for one batch size, one size of image, or another
            opset; an output has a type that cannot be exported.
        InputError: The names do not fit the network's outputs, or the preprocessing cannot be embedded.
    """
    inputs = inputs_of(shape)
    embedding = embedding_for(options.embed_preprocessing, preprocessing, inputs.image_shape)
    kind, batch = type(network).__name__, options.batch_size_fixed
    if batch is None and not takes_several(network, shape):
        raise ExportError(
            f"{kind} takes one {inputs.thing} at a time: its forward fails on a batch of two. Take the batch size from "
            f"the input's shape wherever it is needed, or export for single {inputs.thing}s with `batch_size_fixed=1`."
        )
    if (options.input_names or options.output_names) and (found := names_for(network, shape, batch or 2)):
        file_names(options, found, inputs.names)  # before the work
    if open_sizes(options):
        if inputs.image_shape is None:
            raise InputError(
                f"`dynamic` {options.dynamic} is for images alone, and {kind} takes {inputs}; leave it out."
            )
        _require_other_size(network, inputs.image_shape)
    try:
        program, outputs = capture(network, shape, options, embedding, half=precision == "fp16")
    except Exception as error:  # torch's exporter raises what the network raises, as a cause, and much else
        fault = next((str(found) for found in (error, error.__cause__) if isinstance(found, InputError)), "")
        if precision == "fp16" and _exports(network, shape, options):
            raise ExportError(
                f"torch cannot export {kind} in fp16: {_first_line(error.__cause__ or error)}. Let its forward make "
                "tensors of the type of its input, or leave fp16 out of `precisions`."
            ) from error
        raise ExportError(fault or _why_not(network, shape, options, error)) from error
    _require_open(kind, program, inputs, options)
    if any(isinstance(module, Absent) for module in network.modules()):
        leave_out_zeros(program.model)
    if options.opset is not None:
        raise_opset(program.model, options.opset)
    graph = program.model.graph
    part_pads_from_pools(graph)
    name_nodes(graph)
    for node in graph.all_nodes():
        node.metadata_props.clear()  # stack traces with the paths of this machine
    names = tuple(outputs.tensors)
    name_values(graph, *file_names(options, names, inputs.names))
    leave_out_weight_info(graph)
    return OnnxNetwork(
        options=options,
        inputs=inputs,
        outputs=names,
        left_out=outputs.others,
        embedding=embedding,
        precision=precision,
        _program=program,
    )


def _require_open(kind: str, program: Any, inputs: InputSpec, options: ExportOptions) -> None:
    """Check that the file's inputs have no fixed size where one was to stay open.

    Raises:
        ExportError: One has.
    """
    for value, tensor in zip(program.model.graph.inputs, inputs.tensors, strict=True):
        if value.shape is not None and tensor.batched:
            _require_open_sizes(kind, value.shape, options)


def _require_open_sizes(kind: str, dimensions: Any, options: ExportOptions) -> None:
    """The same for one input."""
    if options.batch_size_fixed is None and isinstance(dimensions[0], int):
        raise ExportError(
            f"torch exports {kind} for a batch of {dimensions[0]} only: its forward turns the batch size into a "
            "number. Take it from the input's shape wherever it is needed, and as a torch size, or export for one "
            "batch size alone with `batch_size_fixed=N`."
        )
    if not open_sizes(options):
        return
    sizes = zip(("height", "width"), height_width(options.embed_preprocessing), strict=True)
    fixed = [f"a {name} of {dimensions[place]}" for name, place in sizes if isinstance(dimensions[place], int)]
    if fixed:
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


def _why_not(network: nn.Module, shape: InputShape, options: ExportOptions, error: Exception) -> str:
    """Say why torch cannot export the network, and what can be done."""
    reason = _first_line(error.__cause__ or error)
    kind, batch = type(network).__name__, options.batch_size_fixed
    if batch is not None and batch > 1 and not takes_several(network, shape):
        return f"{kind} takes one {inputs_of(shape).thing} at a time, not {batch}: give `batch_size_fixed=1`."
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


def _exports(network: nn.Module, shape: InputShape, options: ExportOptions) -> bool:
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
