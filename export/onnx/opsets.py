"""Which opsets an ONNX file may have, and whether a graph's operators are in one."""

from __future__ import annotations

import functools
from typing import Any

import onnx
import onnxruntime

from pruneport.errors import ExportError

__all__ = ["CONVERTED", "OLDEST", "newest_opset", "raise_opset"]

OLDEST = 18
"""Below, torch's dynamo exporter has no operators."""
CONVERTED = 25
"""The newest that onnxscript 0.7 converts to (``SUPPORTED_MAX_ONNX_OPSET`` in its version converter)."""
_FATAL, _WARNINGS = 4, 2  # severities of ONNX Runtime's logs


@functools.cache
def newest_opset() -> int:
    """The newest opset that the ONNX Runtime here takes, found by opening one-node files."""
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "probe", value[:1], value[1:])
    onnxruntime.set_default_logger_severity(_FATAL)
    try:
        for opset in range(onnx.defs.onnx_opset_version(), OLDEST, -1):
            probe = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=10)
            try:
                onnxruntime.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
            except Exception:  # ONNX Runtime's errors share no other base
                continue
            return opset
    finally:
        onnxruntime.set_default_logger_severity(_WARNINGS)
    return OLDEST


def raise_opset(model: Any, opset: int) -> None:
    """Make ``opset`` a model's own, where its operators are the same in it; then check that it has all of them.

    Raises:
        ExportError: An operator is not in this opset, or is another one there.
    """
    present = model.opset_imports[""]
    kinds = sorted({node.op_type for node in model.graph.all_nodes() if node.domain in ("", "ai.onnx")})
    lacking = [kind for kind in kinds if _version(kind, opset) is None]
    if lacking:
        raise ExportError(
            f"opset {opset} does not have {', '.join(lacking)}, which the network needs: give a newer `opset`, or "
            "leave it out."
        )
    other = [kind for kind in kinds if _version(kind, opset) != _version(kind, present)]
    if present != opset and (present < CONVERTED or other):
        changed = f", and in opset {opset} {', '.join(other)} changed" if other else ""
        raise ExportError(
            f"torch's exporter writes the network in opset {present} and does not convert it to {opset}{changed}: give "
            f"`opset={present}`, or leave it out."
        )
    model.opset_imports[""] = opset


def _version(kind: str, opset: int) -> int | None:
    """The version of an operator that is meant in an opset; None where it has none."""
    try:
        return int(onnx.defs.get_schema(kind, max_inclusive_version=opset).since_version)
    except onnx.defs.SchemaError:
        return None
