"""ONNX files in ONNX Runtime on the CPU: opened, asked what they take, run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor

from pruneport.arrays import AnyArray
from pruneport.errors import ExportError, InputError
from pruneport.export.onnx.embedding import EMBEDDED, embedded_name, height_width
from pruneport.export.onnx.form import names_in
from pruneport.export.onnx.memory import within_free_memory
from pruneport.export.onnx.onnx_reader import read_onnx
from pruneport.export.options import EmbeddedName, ParityOptions
from pruneport.models.inputs import ExampleInputs, tensors_in

__all__ = [
    "embedded_in",
    "filled",
    "fitting_batches",
    "fixed_batch",
    "open_cpu_session",
    "open_size",
    "output_names",
    "run_onnx",
]


def open_cpu_session(path: Path) -> Any:
    """Open an ONNX file on ONNX Runtime's CPU provider.

    Raises:
        ExportError: ONNX Runtime cannot open it.
        ModelError: It is no file to open (see ``read_onnx``).
    """
    read_onnx(path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        with within_free_memory():
            return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no other base
        raise ExportError(f"ONNX Runtime cannot open {path}: {error}. Export it again.") from error


def output_names(session: Any) -> tuple[str, ...] | None:
    """What torch calls a session's outputs, in the session's order.

    These are their own names, but where others were chosen. None of files from before they were torch's, whose outputs
    come in its order.
    """
    said = session.get_modelmeta().custom_metadata_map
    if "pruneport.outputs" not in said:
        return None
    names = tuple(output.name for output in session.get_outputs())
    chosen, torchs = (names_in(said.get(f"pruneport.{key}", "")) for key in ("output_names", "outputs"))
    return torchs if chosen == names and len(torchs) == len(names) else names


def open_size(session: Any) -> bool:
    """Whether a session takes images of other sizes than the example's."""
    dimensions = session.get_inputs()[0].shape
    places = height_width(embedded_in(session))
    return any(place < len(dimensions) and not isinstance(dimensions[place], int) for place in places)


def embedded_in(session: Any) -> EmbeddedName | None:
    """What preprocessing a session's file holds; None where it takes normalised inputs.

    Raises:
        ModelError: It says that it holds one that this version does not know.
    """
    return embedded_name(session.get_modelmeta().custom_metadata_map.get(f"pruneport.{EMBEDDED}"))


def fixed_batch(session: Any) -> int | None:
    """The one batch size that a session takes; None where it takes any."""
    batches = [entry.shape[0] for entry in session.get_inputs() if entry.shape]
    if not batches or not all(isinstance(batch, int) for batch in batches):
        return None
    return int(batches[0])


def fitting_batches(options: ParityOptions, fixed: int | None) -> tuple[int, ...]:
    """The batch sizes to compare at: what was asked for, or the fixed one where nothing was.

    Raises:
        InputError: A batch size is below 1, or is not the fixed one.
    """
    asked = options.parity_batches
    if not asked or min(asked) < 1:
        raise InputError(f"`parity_batches` is {asked}; expected batch sizes of at least 1.")
    if fixed is None or set(asked) == {fixed}:
        return asked
    if asked != ParityOptions.parity_batches:
        listed = ", ".join(str(batch) for batch in asked if batch != fixed)
        raise InputError(
            f"`parity_batches` {listed}: the networks are exported for a batch of {fixed} alone. Leave it out, or "
            f"give `parity_batches` {fixed}."
        )
    return (fixed,)


def filled(part: Tensor, size: int | None) -> Tensor:
    """A part (B, ...) with its last entry repeated up to a fixed batch; as it is where none is fixed."""
    return part if size is None else torch.cat([part, part[-1:].expand(size - len(part), *part.shape[1:])])


def run_onnx(session: Any, inputs: ExampleInputs) -> list[AnyArray]:
    """Outputs of a session, whose inputs are in the network's order.

    Raises:
        ExportError: The file does not run on these inputs.
    """
    tensors = tensors_in(inputs)
    try:
        given = {entry.name: tensor.numpy() for entry, tensor in zip(session.get_inputs(), tensors, strict=True)}
        with within_free_memory():
            outputs: list[AnyArray] = session.run(None, given)
    except Exception as error:  # ONNX Runtime's errors share no other base
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
        raise ExportError(
            f"the ONNX file does not run on inputs of shape {shapes}: {error}. Make the network's forward "
            "free of sizes taken as Python numbers, and export it again."
        ) from error
    return outputs
