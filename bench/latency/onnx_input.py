"""What an ONNX file says of the images it takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from pruneport.errors import ModelError
from pruneport.export.onnx.onnx_reader import read_onnx

__all__ = ["NetworkInput", "read_input"]

_DTYPES: dict[int, np.dtype[Any]] = {
    onnx.TensorProto.FLOAT: np.dtype(np.float32),
    onnx.TensorProto.FLOAT16: np.dtype(np.float16),
}


@dataclass(frozen=True, kw_only=True)
class NetworkInput:
    """The one input of a network: images (B, C, H, W)."""

    name: str
    batch: int | str
    """The fixed batch, or the name of the dynamic one; '' where the file does not name it."""
    shape: tuple[int, ...]
    """Shape of one image (C, H, W)."""
    dtype: np.dtype[Any]


def read_input(path: Path) -> NetworkInput:
    """Read the network's input from its ONNX file.

    Raises:
        ModelError: there is no such file, it is no file to open (see ``read_onnx``), or it does not take one batch of
            float images of fixed size.
    """
    graph = read_onnx(path).graph
    weights = {weight.name for weight in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    tensors = [value.type.tensor_type for value in inputs]
    dims = [[d.dim_value if d.HasField("dim_value") else d.dim_param for d in t.shape.dim] for t in tensors]
    shape = tuple(dim for dim in dims[0][1:] if isinstance(dim, int)) if dims else ()
    if len(inputs) != 1 or not shape or len(shape) + 1 != len(dims[0]) or tensors[0].elem_type not in _DTYPES:
        got = ", ".join(f"{v.name} {d}" for v, d in zip(inputs, dims, strict=True)) or "no input"
        raise ModelError(f"{path} must take one batch of float images of fixed size (B, C, H, W); it takes {got}.")
    return NetworkInput(name=inputs[0].name, batch=dims[0][0], shape=shape, dtype=_DTYPES[tensors[0].elem_type])
