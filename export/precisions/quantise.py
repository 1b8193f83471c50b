"""int8 from an fp32 ONNX file: weights and activations become whole numbers of 8 bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx

from pruneport.compress.activations.calibration import Batches
from pruneport.export.bundle.bundle import DATA
from pruneport.export.onnx.embedding import Embedding
from pruneport.export.onnx.onnx_reader import read_onnx
from pruneport.export.precisions.calibration_reader import CalibrationReader
from pruneport.export.precisions.float_layers import FloatLayers
from pruneport.export.precisions.providers import INT8_FOR, PRECISION, Int8Provider
from pruneport.export.precisions.quantiser import Ranges, measure_ranges, quantised
from pruneport.progress import Progress, silent

__all__ = ["Choose", "quantise"]

Choose = Callable[[Path, Ranges], FloatLayers]
"""Says of an fp32 file, with the ranges of its activations, which layers stay in float."""

_PART = 8  # inputs whose range counts as one in the moving average
_INLINE_LIMIT_BYTES = 1_800_000_000  # as of fp32 files
_SMALLEST_OUTSIDE_BYTES = 256  # shapes, which ONNX Runtime reads while it opens the file, stay inside


def quantise(
    source: Path,
    target: Path,
    batches: Batches,
    provider: Int8Provider,
    said: str,
    *,
    choose: Choose | None = None,
    embedding: Embedding | None = None,
    external_data: bool = False,
    progress: Progress = silent,
) -> FloatLayers:
    """Write the int8 form of an fp32 ONNX file, with the metadata of that file.

    Args:
        source: The fp32 file.
        target: Where the int8 file goes.
        batches: Calibration inputs of the network (B, C, H, W).
        provider: What it is for.
        said: The calibration inputs in words, for the metadata.
        choose: Says which layers stay in float; default: none.
        embedding: What the file holds before the network.
        external_data: Put its weights into a file of their own.
        progress: Told how far it is.

    Returns:
        The layers that stay in float.

    Raises:
        ExportError: The quantiser fails.
    """
    graph = read_onnx(source).graph
    first = graph.input[0].type.tensor_type.shape.dim[0]
    reader = CalibrationReader(graph.input[0].name, batches, first.dim_value or _PART, embedding, progress)
    ranges = measure_ranges(source, reader, provider)
    kept = FloatLayers() if choose is None else choose(source, ranges)
    model = quantised(source, ranges, provider, floats=kept.nodes)
    metadata = {entry.key: entry.value for entry in model.metadata_props if entry.key.startswith("pruneport.")}
    made = {PRECISION: "int8", INT8_FOR: provider, "calibration": said, **kept.metadata()}
    onnx.helper.set_model_props(model, metadata | {f"pruneport.{key}": value for key, value in made.items()})
    size = sum(len(weight.raw_data) for weight in model.graph.initializer)
    onnx.save(
        model,
        str(target),
        save_as_external_data=external_data or size > _INLINE_LIMIT_BYTES,
        location=target.name + DATA,
        size_threshold=_SMALLEST_OUTSIDE_BYTES,
    )
    return kept
