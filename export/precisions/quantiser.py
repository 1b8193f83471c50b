"""ONNX Runtime's quantiser, in the two steps that it has: ranges are measured once, graphs are made as often as wanted.

The result is standard ONNX: QuantizeLinear and DequantizeLinear around operators in float32 (QDQ), which a runtime
fuses into integer kernels. Which pairs it can fuse depends on the provider, and so does the form:

- cpu: unsigned activations with a zero point, signed weights, of every operator that the quantiser knows; ranges are
  the moving average, over parts of the calibration inputs, of their smallest and largest value
- tensorrt: signed symmetric activations, no zero points, of convolutions, matrix products and sums alone, whose
  results and biases stay in float; ranges hold all but the largest 0.001 % of the values

In both, weights have a scale for each output channel.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import tempfile
import warnings
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QDQQuantizer, QuantType
from onnxruntime.quantization.calibrate import TensorsData, create_calibrator
from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

from pruneport.errors import ExportError
from pruneport.export.bundle.bundle import DATA
from pruneport.export.onnx.onnx_reader import read_onnx
from pruneport.export.precisions.calibration_reader import OnePart
from pruneport.export.precisions.providers import Int8Provider

__all__ = ["MOVES", "Ranges", "known_operators", "left_in_float", "measure_ranges", "quantised"]

Ranges: TypeAlias = TensorsData
"""Smallest and largest value of each activation, by its name in the graph."""

_SYMMETRIC = ["Conv", "Gemm", "MatMul", "Add"]
MOVES = frozenset(
    {
        *("Cast", "Constant", "ConstantOfShape", "Expand", "Flatten", "Gather", "Identity", "Range", "Reshape"),
        *("Shape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze", "Relu", "Clip", "MaxPool", "Concat"),
    }
)
"""Operators that compute nothing which int8 would make faster."""


def measure_ranges(source: Path, reader: CalibrationDataReader, provider: Int8Provider) -> Ranges:
    """The ranges of a network's activations.

    Args:
        source: An fp32 file.
        reader: Gives what the file takes, in parts.
        provider: What int8 is for.

    Raises:
        ExportError: The file does not run on what the reader gives.
    """
    symmetric = provider == "tensorrt"
    with _said_of(source), tempfile.TemporaryDirectory() as folder:
        calibrator = create_calibrator(
            source,
            known_operators(provider),
            augmented_model_path=str(Path(folder) / "calibrated.onnx"),
            calibrate_method=CalibrationMethod.Percentile if symmetric else CalibrationMethod.MinMax,
            use_external_data_format=source.with_name(source.name + DATA).is_file(),
            extra_options={"symmetric": True} if symmetric else {"moving_average": True},
        )
        parts = map(OnePart, iter(reader.get_next, None)) if symmetric else [reader]
        for part in parts:  # histograms keep all activations of what they are given at once
            with contextlib.redirect_stdout(io.StringIO()) if symmetric else contextlib.nullcontext():  # it prints
                calibrator.collect_data(part)
        with contextlib.redirect_stdout(io.StringIO()):
            ranges: Ranges = calibrator.compute_data()
    return ranges


def quantised(
    source: Path,
    ranges: Ranges,
    provider: Int8Provider,
    *,
    floats: Collection[str] = (),
    only: Collection[str] = (),
) -> onnx.ModelProto:
    """The int8 form of an fp32 file, in memory.

    Args:
        source: The fp32 file.
        ranges: Of its activations.
        provider: What it is for.
        floats: Nodes that are left in float, by name.
        only: Nodes that alone are quantised; default: all.

    Raises:
        ExportError: The quantiser fails.
    """
    symmetric = provider == "tensorrt"
    options: dict[str, Any] = {}
    if symmetric:
        options = {
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": _SYMMETRIC,
        }
    with _said_of(source):
        quantiser = QDQQuantizer(
            load_model_with_shape_infer(source),
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QInt8 if symmetric else QuantType.QUInt8,
            tensors_range=copy.deepcopy(ranges),  # it changes them
            nodes_to_quantize=list(only),
            nodes_to_exclude=list(floats),
            op_types_to_quantize=known_operators(provider),
            extra_options=options,
        )
        quantiser.quantize_model()
        quantiser.model.topological_sort()
        made: onnx.ModelProto = quantiser.model.model
        return made


def known_operators(provider: Int8Provider) -> list[str]:
    """Operators that are quantised for a provider."""
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    return list(_SYMMETRIC) if provider == "tensorrt" else sorted({*QDQRegistry, *QLinearOpsRegistry})


def left_in_float(source: Path, provider: Int8Provider) -> dict[str, int]:
    """How many nodes of which operators of an fp32 file int8 computes in float: the quantiser does not know them."""
    known = {*known_operators(provider)} | MOVES
    floats = (node.op_type for node in read_onnx(source).graph.node if node.op_type not in known)
    return dict(sorted(Counter(floats).items()))


@contextlib.contextmanager
def _said_of(source: Path) -> Iterator[None]:
    """What the quantiser raises becomes ours; its advice to prepare the file, which our exporter has done, is not told.

    Raises:
        ExportError: The quantiser failed.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (InterruptedError, MemoryError):
        raise
    except Exception as error:  # ONNX Runtime's quantiser raises what it meets
        reason = (str(error).strip().splitlines() or [repr(error)])[0]
        raise ExportError(
            f"ONNX Runtime's quantiser cannot make int8 of {source.name}: {reason}. Leave int8 out of `precisions`."
        ) from error
    finally:
        logging.disable(disabled)
