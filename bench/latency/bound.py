"""A batch that is bound to a session in the provider's own memory, where it is run again and again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnx import TensorProto

from pruneport.errors import ProviderError

__all__ = ["BoundRun", "Plain"]

Plain = Callable[[Mapping[str, npt.NDArray[Any]]], list[npt.NDArray[Any]]]
"""Runs a network without a CUDA graph: inputs by name to outputs."""

_REPLAYED = 0.05  # of the outputs' size: other kernels round otherwise, in fp16 and TF32 by some thousandths
_ONNX_TYPES = {
    f"tensor({name})": kind
    for name, kind in (
        *(("float", TensorProto.FLOAT), ("float16", TensorProto.FLOAT16), ("double", TensorProto.DOUBLE)),
        *(("bfloat16", TensorProto.BFLOAT16), ("bool", TensorProto.BOOL), ("string", TensorProto.STRING)),
        *(
            (f"{sign}int{bits}", TensorProto.DataType.Value(f"{sign}int{bits}".upper()))
            for sign in ("", "u")
            for bits in (8, 16, 32, 64)
        ),
    )
}


class BoundRun:
    """One batch of every input bound to one session, inputs and outputs at fixed addresses."""

    def __init__(
        self, session: Any, given: Mapping[str, npt.NDArray[Any]], device: tuple[str, int], plain: Plain | None
    ) -> None:
        self._session, self._given, self._plain = session, given, plain
        self._binding = session.io_binding()
        # Kept here: on the CPU a value only borrows its array's memory.
        self._values = [ort.OrtValue.ortvalue_from_numpy(array, *device) for array in given.values()]
        for name, value in zip(given, self._values, strict=True):
            self._binding.bind_ortvalue_input(name, value)
        for meta in session.get_outputs():
            if not all(isinstance(size, int) for size in meta.shape):
                if plain is not None:
                    raise ProviderError(
                        f"the sizes of {meta.name} follow from the input: a CUDA graph cannot have such"
                    )
                self._binding.bind_output(meta.name, *device)
                continue
            value = ort.OrtValue.ortvalue_from_shape_and_type(meta.shape, _ONNX_TYPES[meta.type], *device)
            self._binding.bind_ortvalue_output(meta.name, value)
            self._values.append(value)
        self._binding.synchronize_inputs()

    def run(self) -> None:
        """Run once and return when the result is there."""
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()

    def outputs(self) -> list[npt.NDArray[Any]]:
        """Copy the latest result to the host."""
        return list(self._binding.copy_outputs_to_cpu())

    def check_replay(self) -> None:
        """See that a CUDA graph computes what the network computes; without a graph there is nothing to see.

        A graph that was captured wrongly computes little, and fast. It is replayed on other inputs than it was captured
        with, into empty outputs, and compared with a plain run on these.

        Raises:
            ProviderError: The outputs differ by more than rounding does.
        """
        if self._plain is None:
            return
        given = {name: array.copy() for name, array in self._given.items()}
        other = {name: np.ascontiguousarray(np.flip(array)) for name, array in given.items()}
        inputs, outputs = self._values[: len(given)], self._values[len(given) :]
        wanted = self._plain(other)
        for value, array in zip((*inputs, *outputs), (*other.values(), *map(np.zeros_like, wanted)), strict=True):
            value.update_inplace(array)
        self._binding.synchronize_inputs()
        self.run()
        differences = [_difference(got, want) for got, want in zip(self.outputs(), wanted, strict=True)]
        for value, array in zip(inputs, given.values(), strict=True):
            value.update_inplace(array)
        self._binding.synchronize_inputs()
        if not max(differences) <= _REPLAYED:
            raise ProviderError(
                "The replayed CUDA graph does not compute what the network computes: on inputs that it was not "
                f"captured with, its outputs differ by {max(differences):.2g} of their size. Time without `cuda_graph`."
            )


def _difference(got: npt.NDArray[Any], want: npt.NDArray[Any]) -> float:
    """Norm of the difference over the norm of what was wanted; choices that rounding decides are not compared."""
    if got.shape != want.shape:
        return np.inf
    if want.dtype.kind != "f":
        return 0.0
    finite = np.isfinite(want)
    if not np.array_equal(finite, np.isfinite(got)):
        return np.inf
    size = np.linalg.norm(want[finite].astype(np.float64))
    difference = np.linalg.norm(got[finite].astype(np.float64) - want[finite])
    return float(difference / size) if size else float(difference > 0)
