"""What an ONNX file says of the inputs it takes, and seeded values for them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from pruneport.compress.surgery.plan_schema import MOST_INPUTS
from pruneport.errors import ModelError
from pruneport.export.onnx.form import ranges_in, shape_in
from pruneport.export.onnx.onnx_reader import read_onnx
from pruneport.models.inputs import check_memory

__all__ = ["NetworkInput", "NetworkInputs", "read_inputs"]

_DTYPES: dict[int, np.dtype[Any]] = {
    kind: onnx.helper.tensor_dtype_to_np_dtype(kind)
    for kind in (
        *(TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BOOL),
        *(TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64),
        *(TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64),
    )
}


@dataclass(frozen=True, kw_only=True)
class NetworkInput:
    """One input of a network.

    Attributes:
        name: In the file.
        batch: The fixed batch, or the name of the dynamic one; '' where the file does not name it; None of an input
            that has no batch: a single number, or one of fixed size beside others of a dynamic batch.
        shape: Sizes but the batch, such as (C, H, W); where the file leaves sizes open, those that it was made for.
        dtype: Of its values.
        open_sizes: Names of the sizes in ``shape`` that the file leaves open, and what they are here.
        values: The lowest and the highest value that the file's metadata says it may be given.
    """

    name: str
    batch: int | str | None
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    open_sizes: Mapping[str, int] = field(default_factory=dict)
    values: tuple[float, float] | None = None

    def sizes(self, batch: int) -> tuple[int, ...]:
        """Its whole shape at a batch size."""
        if self.batch is None:
            return self.shape
        return (self.batch if isinstance(self.batch, int) else batch, *self.shape)

    def drawn(self, batch: int, generator: np.random.Generator) -> npt.NDArray[Any]:
        """Values of its kind, all as likely between the lowest and the highest that the file says it may be given.

        Where it says nothing, floats are standard normal, as normalised images are; uint8 is 0 to 255, as pixels are;
        bool is either; and other whole numbers are 0, which is in range of any table that they are looked up in.
        """
        shape = self.sizes(batch)
        if self.dtype.kind == "f":
            if self.values is None:
                return np.asarray(generator.standard_normal(shape, dtype=np.float32)).astype(self.dtype)
            return np.asarray(generator.uniform(*self.values, shape)).astype(self.dtype)
        bounds = {"bool": (0, 1), "uint8": (0, 255)}
        low, high = map(int, self.values or bounds.get(self.dtype.name, (0, 0)))
        return np.asarray(generator.integers(low, high, shape, dtype=np.int64, endpoint=True)).astype(self.dtype)


@dataclass(frozen=True)
class NetworkInputs:
    """All inputs of a network, in the file's order."""

    inputs: tuple[NetworkInput, ...]

    @property
    def batch(self) -> int | str:
        """The fixed batch, or the name of the first dynamic one; 1 where no input has a batch."""
        batches = [entry.batch for entry in self.inputs if entry.batch is not None]
        return next((batch for batch in batches if isinstance(batch, str)), batches[0] if batches else 1)

    def named_sizes(self, batch: int | None) -> dict[str, int]:
        """Sizes of the dimensions that the file only names; of those of the batch too, where it is given."""
        sizes = {name: size for entry in self.inputs for name, size in entry.open_sizes.items()}
        if batch:
            sizes |= {entry.batch: batch for entry in self.inputs if isinstance(entry.batch, str)}
        return {name: size for name, size in sizes.items() if name}

    def drawn(self, batch: int, seed: int) -> tuple[npt.NDArray[Any], ...]:
        """Seeded values for every input, the same every time; see ``NetworkInput.drawn``.

        Raises:
            InputError: They take more memory than is free.
        """
        needed = sum(math.prod(entry.sizes(batch)) * entry.dtype.itemsize for entry in self.inputs)
        check_memory(needed, f"a batch of {batch} of {self}")
        generator = np.random.default_rng(seed)
        return tuple(entry.drawn(batch, generator) for entry in self.inputs)

    def takes_as(self, other: NetworkInputs) -> bool:
        """Whether both take the same values, whatever the batch; names may differ."""
        return [(entry.shape, entry.dtype) for entry in self.inputs] == [
            (entry.shape, entry.dtype) for entry in other.inputs
        ]

    def __str__(self) -> str:
        return ", ".join(f"{entry.name} {entry.dtype} {entry.shape}" for entry in self.inputs)


def read_inputs(path: Path) -> NetworkInputs:
    """Read the network's inputs from its ONNX file.

    Raises:
        ModelError: there is no such file, it is no file to open (see ``read_onnx``), or it takes nothing, or what is no
            tensor of numbers, or one whose sizes but the batch are neither fixed nor in the file's metadata.
    """
    model = read_onnx(path)
    weights = {weight.name for weight in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    dims = [_dimensions(value.type.tensor_type) for value in inputs]
    dynamic = any(isinstance(sizes[0], str) for sizes in dims if sizes)
    said = {entry.key: entry.value for entry in model.metadata_props}
    made_for = shape_in(said.get("pruneport.input_shape", "")) if len(inputs) == 1 else None
    ranges = ranges_in(said.get("pruneport.input_ranges", ""))
    found = [
        _input(value, sizes, made_for, ranges.get(value.name), dynamic)
        for value, sizes in zip(inputs, dims, strict=True)
    ]
    taken = tuple(entry for entry in found if entry is not None)
    if len(taken) != len(inputs) or not inputs:
        got = ", ".join(f"{v.name} {d}" for v, d in zip(inputs, dims, strict=True)) or "no input"
        raise ModelError(
            f"{path} must take tensors of numbers, one batch of each, whose other sizes are fixed, such as images "
            f"(B, C, H, W) of float32; it takes {got}."
        )
    return NetworkInputs(taken)


def _dimensions(tensor: onnx.TypeProto.Tensor) -> list[int | str]:
    """Sizes, and names of the sizes that are open."""
    return [size.dim_value if size.HasField("dim_value") else size.dim_param for size in tensor.shape.dim]


def _input(
    value: onnx.ValueInfoProto,
    sizes: Sequence[int | str],
    made_for: tuple[int, int, int] | None,
    values: tuple[float, float] | None,
    dynamic: bool,
) -> NetworkInput | None:
    """An input of a file, whose batch is ``dynamic`` or not; None of one whose sizes or values are not known."""
    dtype = _DTYPES.get(value.type.tensor_type.elem_type)
    if dtype is None or not value.type.tensor_type.HasField("shape"):
        return None
    has_batch = bool(sizes) and (isinstance(sizes[0], str) or not dynamic)
    batch, rest = (sizes[0], sizes[1:]) if has_batch else (None, sizes)
    shape = _fixed(rest, made_for)
    if shape is None or batch == 0:
        return None
    if values is not None and not _holds(dtype, *values):
        values = None
    open_sizes = {size: known for size, known in zip(rest, shape, strict=True) if isinstance(size, str)}
    return NetworkInput(name=value.name, batch=batch, shape=shape, dtype=dtype, open_sizes=open_sizes, values=values)


def _fixed(sizes: Sequence[int | str], made_for: tuple[int, int, int] | None) -> tuple[int, ...] | None:
    """Sizes but the batch, open ones by what the file was made for; None where it does not say, or of no such size."""
    known = tuple(size for size in sizes if isinstance(size, int))
    if len(known) != len(sizes):
        if made_for is None or len(sizes) != len(made_for):
            return None
        if any(isinstance(size, int) and size != made for size, made in zip(sizes, made_for, strict=True)):
            return None
        known = made_for
    return known if all(size >= 1 for size in known) and math.prod(known) <= MOST_INPUTS else None


def _holds(dtype: np.dtype[Any], low: float, high: float) -> bool:
    """Whether a type has these values."""
    if dtype.kind == "f":
        return float(np.finfo(dtype).min) <= low <= high <= float(np.finfo(dtype).max)
    whole = isinstance(low, int) and isinstance(high, int)
    least, most = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return whole and least <= low <= high <= min(most, np.iinfo(np.int64).max)
