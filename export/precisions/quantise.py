"""int8 from an fp32 ONNX file, by ONNX Runtime's quantiser: weights and activations become whole numbers of 8 bits.

The result is standard ONNX: QuantizeLinear and DequantizeLinear around operators in float32 (QDQ), which a runtime
fuses into integer kernels. Which pairs it can fuse depends on the provider, and so does the form:

- cpu: unsigned activations with a zero point, signed weights, of every operator that the quantiser knows
- tensorrt: signed symmetric activations, no zero points, of convolutions, matrix products and sums alone, whose
  results and biases stay in float

In both, weights have a scale for each output channel, and ranges of activations are the moving average, over parts of
the calibration inputs, of their smallest and largest value.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

from pruneport.compress.activations.calibration import Batches
from pruneport.errors import ExportError
from pruneport.export.bundle.bundle import DATA
from pruneport.export.onnx.embedding import Embedding
from pruneport.export.onnx.onnx_reader import read_onnx
from pruneport.export.precisions.calibration_reader import CalibrationReader
from pruneport.export.precisions.providers import INT8_FOR, PRECISION, Int8Provider
from pruneport.progress import Progress, silent

__all__ = ["left_in_float", "quantise"]

_PART = 8  # inputs whose range counts as one in the moving average
_INLINE_LIMIT_BYTES = 1_800_000_000  # as of fp32 files
_SMALLEST_OUTSIDE_BYTES = 256  # shapes, which ONNX Runtime reads while it opens the file, stay inside
_SYMMETRIC = ["Conv", "Gemm", "MatMul", "Add"]
_MOVES = {
    *("Cast", "Constant", "ConstantOfShape", "Expand", "Flatten", "Gather", "Identity", "Range", "Reshape", "Shape"),
    *("Slice", "Split", "Squeeze", "Transpose", "Unsqueeze", "Relu", "Clip", "MaxPool", "Concat"),
}
"""Operators that compute nothing which int8 would make faster."""


def quantise(
    source: Path,
    target: Path,
    batches: Batches,
    provider: Int8Provider,
    said: str,
    *,
    embedding: Embedding | None = None,
    external_data: bool = False,
    progress: Progress = silent,
) -> None:
    """Write the int8 form of an fp32 ONNX file, with the metadata of that file.

    Args:
        source: The fp32 file.
        target: Where the int8 file goes.
        batches: Calibration inputs of the network (B, C, H, W).
        provider: What it is for.
        said: The calibration inputs in words, for the metadata.
        embedding: What the file holds before the network.
        external_data: Put its weights into a file of their own.
        progress: Told how far it is.

    Raises:
        ExportError: The quantiser fails.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    graph = read_onnx(source).graph
    first = graph.input[0].type.tensor_type.shape.dim[0]
    reader = CalibrationReader(graph.input[0].name, batches, first.dim_value or _PART, embedding, progress)
    symmetric = provider == "tensorrt"
    options: dict[str, Any] = {"CalibMovingAverage": True}
    if symmetric:
        options |= {
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": _SYMMETRIC,
        }
    try:
        with tempfile.TemporaryDirectory() as folder, _silence():
            made = Path(folder) / "int8.onnx"
            quantize_static(
                str(source),
                str(made),
                reader,
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=_SYMMETRIC if symmetric else None,
                per_channel=True,
                activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                use_external_data_format=source.with_name(source.name + DATA).is_file(),
                extra_options=options,
            )
            model = onnx.load(str(made))
    except (InterruptedError, MemoryError):
        raise
    except Exception as error:  # ONNX Runtime's quantiser raises what it meets
        reason = (str(error).strip().splitlines() or [repr(error)])[0]
        raise ExportError(
            f"ONNX Runtime's quantiser cannot make int8 of {source.name}: {reason}. Leave int8 out of `precisions`."
        ) from error
    kept = [entry for entry in model.metadata_props if entry.key.startswith("pruneport.")]
    metadata = {entry.key: entry.value for entry in kept} | {
        f"pruneport.{PRECISION}": "int8",
        f"pruneport.{INT8_FOR}": provider,
        "pruneport.calibration": said,
    }
    onnx.helper.set_model_props(model, metadata)
    size = sum(len(weight.raw_data) for weight in model.graph.initializer)
    onnx.save(
        model,
        str(target),
        save_as_external_data=external_data or size > _INLINE_LIMIT_BYTES,
        location=target.name + DATA,
        size_threshold=_SMALLEST_OUTSIDE_BYTES,
    )


def left_in_float(source: Path, provider: Int8Provider) -> dict[str, int]:
    """How many nodes of which operators of an fp32 file int8 computes in float: the quantiser does not know them."""
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    known = {*_SYMMETRIC} if provider == "tensorrt" else {*QDQRegistry, *QLinearOpsRegistry}
    floats = (node.op_type for node in read_onnx(source).graph.node if node.op_type not in known | _MOVES)
    return dict(sorted(Counter(floats).items()))


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Without the quantiser's advice to prepare the file, which our exporter has done."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
