"""ONNX files, read and looked through before ONNX Runtime opens them.

What our exporter never writes, and what could hang, crash or reach out of the folder there, is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, numpy_helper

from pruneport.errors import ModelError
from pruneport.export.bundle.bundle import DATA
from pruneport.models.files import not_a_file

__all__ = ["read_onnx"]

_NODES = 50_000  # EfficientNet V2 L has 2000
_SHOWN = 10
_GRAPHS = (AttributeProto.GRAPH, AttributeProto.GRAPHS)
_UNKNOWN_TO_IMAGES = ("Loop", "Scan", "If", "Sequence", "Optional", "String", "Regex", "TfIdf")
_SEQUENCES = {"ConcatFromSequence", "SplitToSequence"}
_MOVES = {"Gather", "Squeeze", "Unsqueeze", "Reshape", "Slice", "Identity"}
_INTEGERS = {
    *(TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64),
    *(TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64),
}


def read_onnx(path: Path) -> onnx.ModelProto:
    """Read an ONNX file without its external weights.

    Raises:
        ModelError: It is no ONNX file, or has loops, branches, functions, sequences, strings, sparse weights, operators
            of other domains, weights outside its own .data file, or divides whole numbers by what may be 0 or -1.
    """
    if found := not_a_file(path):
        raise ModelError(f"There is no ONNX file {path}: it {found}.")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's and onnx's own errors share no other base
        raise ModelError(f"{path} is not an ONNX file: {error}. Export it again.") from error
    faults = list(dict.fromkeys(_faults(model, path)))
    if faults:
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise ModelError(
            f"{path} is not opened, since no export of pruneport has such parts: {'; '.join(faults[:_SHOWN])}{more}. "
            "Do not use it; export the network again."
        )
    return model


def _faults(model: onnx.ModelProto, path: Path) -> Iterator[str]:
    """What in a model is not of a network for images."""
    graph = model.graph
    if model.functions:
        yield f"{len(model.functions)} functions"
    if len(graph.node) > _NODES:
        yield f"{len(graph.node)} nodes"
    if graph.sparse_initializer:
        yield "sparse weights"
    for node in graph.node:
        name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        known = node.domain in ("", "ai.onnx") and node.op_type not in _SEQUENCES
        if not known or node.op_type.startswith(_UNKNOWN_TO_IMAGES):
            yield f"the operator {name}"
        for attribute in node.attribute:
            if attribute.type in _GRAPHS or attribute.HasField("g") or attribute.graphs:
                yield f"a graph inside {name}"
            if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                yield "sparse weights"
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.STRING:
                yield "strings"
    inside = (attribute for node in graph.node for attribute in node.attribute)
    tensors = [*graph.initializer, *(tensor for entry in inside for tensor in (entry.t, *entry.tensors))]
    faults = [fault for tensor in tensors for fault in _tensor_faults(tensor, path)]
    yield from faults or _divisions(model, path.parent)  # for which values are read, also from the file beside it


def _tensor_faults(tensor: TensorProto, path: Path) -> Iterator[str]:
    """What is wrong with a tensor: strings, or values in another place than the file beside it."""
    if tensor.data_type == TensorProto.STRING:
        yield "strings"
    if tensor.data_location != TensorProto.EXTERNAL and not tensor.external_data:
        return
    place = {entry.key: entry.value for entry in tensor.external_data}
    data = path.with_name(path.name + DATA)
    if place.get("location") != data.name or data.is_symlink() or not_a_file(data):
        yield f"weights in {place.get('location', 'no file')!r}, which is no file {data.name} beside it"
        return
    try:
        start, size = int(place.get("offset", 0)), int(place.get("length", 0))
    except ValueError:
        start = size = -1
    if min(start, size) < 0 or start + size > data.stat().st_size:
        yield f"weights beyond the end of {data.name}"


def _divisions(model: onnx.ModelProto, folder: Path) -> Iterator[str]:
    """Divisions of whole numbers by what is not surely above 0; weights may lie in a file in ``folder``.

    By 0 ONNX Runtime raises; the lowest number by -1 is a fault of the processor, which ends the process.
    """
    divisions = [node for node in model.graph.node if node.op_type in ("Div", "Mod") and len(node.input) == 2]
    if not divisions:
        return
    constants = {weight.name: weight for weight in model.graph.initializer}
    constants |= {
        node.output[0]: attribute.t
        for node in model.graph.node
        for attribute in node.attribute
        if node.op_type == "Constant" and node.output and attribute.name == "value"
    }
    producers = {output: node for node in model.graph.node for output in node.output}
    kinds: Mapping[str, int] | None = None
    for node in divisions:
        if any(_is_size(value, producers) for value in node.input):
            continue
        divisor = constants.get(node.input[1])
        if divisor is not None:
            whole = divisor.data_type in _INTEGERS
            if not whole or _all_positive(divisor, folder):
                continue
        else:
            kinds = _kinds(model) if kinds is None else kinds
            kind = kinds.get(node.input[1], kinds.get(node.output[0], TensorProto.UNDEFINED))
            if kind not in _INTEGERS and kind != TensorProto.UNDEFINED:
                continue
        yield f"a division of whole numbers by what may be 0 or -1 ({node.op_type} {node.name or node.output[0]})"


def _is_size(value: str, producers: Mapping[str, onnx.NodeProto]) -> bool:
    """Whether a value is a size of a tensor, moved about at most: it is never negative."""
    seen: set[str] = set()
    while value not in seen and (node := producers.get(value)) is not None:
        seen.add(value)
        if node.op_type in ("Shape", "Size"):
            return True
        if node.op_type not in _MOVES or not node.input:
            return False
        value = node.input[0]
    return False


def _all_positive(tensor: TensorProto, folder: Path) -> bool:
    """Whether all numbers of a small tensor are above zero."""
    try:
        return bool(np.all(numpy_helper.to_array(tensor, str(folder)) > 0))
    except Exception:  # sizes that are not so
        return False


def _kinds(model: onnx.ModelProto) -> dict[str, int]:
    """Element types by value, inferred from a copy without the weights' content."""
    without_values = onnx.ModelProto()
    without_values.CopyFrom(model)
    for weight in without_values.graph.initializer:
        if weight.data_type not in _INTEGERS:
            weight.ClearField("raw_data")
            weight.ClearField("float_data")
    try:
        graph = onnx.shape_inference.infer_shapes(without_values).graph
    except Exception:  # the checker says it better
        graph = without_values.graph
    values = (*graph.value_info, *graph.input, *graph.output)
    return {value.name: value.type.tensor_type.elem_type for value in values} | {
        weight.name: weight.data_type for weight in graph.initializer
    }
