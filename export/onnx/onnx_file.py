"""ONNX files: written, checked and read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import onnx
from torch import nn

from pruneport.errors import ExportError
from pruneport.export.bundle.bundle import DATA
from pruneport.export.onnx.embedding import EMBEDDED
from pruneport.export.onnx.exporter import export_network
from pruneport.export.onnx.onnx_reader import read_onnx
from pruneport.export.options import DEFAULTS, ExportOptions
from pruneport.files import file_sha256
from pruneport.models.inputs import InputShape
from pruneport.models.record import Preprocessing

__all__ = ["check_onnx", "network_sha256", "read_metadata", "write_onnx"]


def write_onnx(
    network: nn.Module,
    shape: InputShape,
    path: Path,
    metadata: Mapping[str, str],
    options: ExportOptions = DEFAULTS,
    preprocessing: Preprocessing | None = None,
) -> None:
    """Export ``network`` for inputs of this shape and write it (see ``export_network``)."""
    export_network(network, shape, options, preprocessing).save(path, metadata)


def check_onnx(path: Path) -> str:
    """Run onnx's checker with shape inference; return a sentence that says what was checked.

    Raises:
        ExportError: The file is not valid ONNX.
        ModelError: It is no file to open (see ``read_onnx``).
    """
    model = read_onnx(path)
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:
        raise ExportError(f"{path} is not valid ONNX: {error}. Export it again.") from error
    opsets = ", ".join(f"{entry.domain or 'ai.onnx'} {entry.version}" for entry in model.opset_import)
    outputs = ", ".join(output.name for output in model.graph.output)
    said = _metadata(model)
    embedded = f"; it normalises images itself, embedded as {said[EMBEDDED]}" if EMBEDDED in said else ""
    left_out = f"; besides these torch returns {said['left_out']}" if said.get("left_out") else ""
    return f"{path.name}: {len(model.graph.node)} nodes, opset {opsets}, outputs {outputs}{embedded}{left_out}"


def read_metadata(path: Path) -> dict[str, str]:
    """Return the ``pruneport.`` metadata of an ONNX file, without the prefix."""
    return _metadata(read_onnx(path))


def network_sha256(path: Path) -> str:
    """The SHA-256 of what an ONNX file computes: its graph and weights, without the metadata."""
    graph = read_onnx(path).graph.SerializeToString(deterministic=True)
    beside = path.with_name(path.name + DATA)
    weights = file_sha256(beside) if beside.is_file() else ""
    return hashlib.sha256(hashlib.sha256(graph).digest() + weights.encode()).hexdigest()


def _metadata(model: onnx.ModelProto) -> dict[str, str]:
    """What pruneport has written into a model."""
    return {
        entry.key.removeprefix("pruneport."): entry.value
        for entry in model.metadata_props
        if entry.key.startswith("pruneport.")
    }
