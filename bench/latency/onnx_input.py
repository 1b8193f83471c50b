"""What an ONNX file says of the images it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from pruneport.errors import ModelError
from pruneport.export.onnx.form import shape_in
from pruneport.export.onnx.onnx_reader import read_onnx

__all__ = ["NetworkInput", "read_input"]

_DTYPES: dict[int, np.dtype[Any]] = {
    onnx.TensorProto.FLOAT: np.dtype(np.float32),
    onnx.TensorProto.FLOAT16: np.dtype(np.float16),
}


@dataclass(frozen=True, kw_only=True)
class NetworkInput:
    """The one input of a network: images (B, C, H, W).

    Attributes:
        name: In the file.
        batch: The fixed batch, or the name of the dynamic one; '' where the file does not name it.
        shape: Shape of one image (C, H, W); where the file leaves sizes open, those that it was made for.
        dtype: Of the pixels.
        open_sizes: Names of the sizes in ``shape`` that the file leaves open, and what they are here.
    """

    name: str
    batch: int | str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    open_sizes: Mapping[str, int] = field(default_factory=dict)


def read_input(path: Path) -> NetworkInput:
    """Read the network's input from its ONNX file.

    Raises:
        ModelError: there is no such file, it is no file to open (see ``read_onnx``), or it does not take one batch of
            float images, whose size is fixed or stands in the file's metadata.
    """
    model = read_onnx(path)
    graph = model.graph
    weights = {weight.name for weight in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    tensors = [value.type.tensor_type for value in inputs]
    dims = [[d.dim_value if d.HasField("dim_value") else d.dim_param for d in t.shape.dim] for t in tensors]
    said = next((entry.value for entry in model.metadata_props if entry.key == "pruneport.input_shape"), "")
    shape = _image_shape(dims[0], shape_in(said)) if dims else ()
    if len(inputs) != 1 or not shape or tensors[0].elem_type not in _DTYPES:
        got = ", ".join(f"{v.name} {d}" for v, d in zip(inputs, dims, strict=True)) or "no input"
        raise ModelError(f"{path} must take one batch of float images of fixed size (B, C, H, W); it takes {got}.")
    return NetworkInput(
        name=inputs[0].name,
        batch=dims[0][0],
        shape=shape,
        dtype=_DTYPES[tensors[0].elem_type],
        open_sizes={dim: size for dim, size in zip(dims[0][1:], shape, strict=True) if isinstance(dim, str)},
    )


def _image_shape(dims: Sequence[int | str], made_for: tuple[int, int, int] | None) -> tuple[int, ...]:
    """C, H, W of dimensions (B, C, H, W), open ones by what the file was made for; nothing where it does not say."""
    if all(isinstance(dim, int) for dim in dims[1:]):
        return tuple(dim for dim in dims[1:] if isinstance(dim, int))
    if made_for is None or len(dims) != 1 + len(made_for):
        return ()
    agree = (dim == size if isinstance(dim, int) else dim for dim, size in zip(dims[1:], made_for, strict=True))
    return made_for if all(agree) else ()
