"""Parity: torch and ONNX Runtime compute the same outputs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pruneport.errors import ExportError, PruneportError
from pruneport.export.compared import Compared
from pruneport.export.cpu_session import open_cpu_session, open_size, output_names, run_onnx
from pruneport.export.detections import MatchedDetections
from pruneport.export.onnx.capture import onnx_outputs
from pruneport.export.onnx.embedding import Embedding
from pruneport.export.onnx.form import other_size
from pruneport.export.onnx.onnx_network import OnnxNetwork
from pruneport.export.options import OnnxPrecision
from pruneport.models.inputs import INPUT_NAME, ExampleInputs, InputShape, InputSpec, changed, inputs_of, run_on
from pruneport.models.outputs import FLOAT32, Outputs, Tolerance

__all__ = [
    "Parity",
    "check_other_batches",
    "check_seeded",
    "nearby",
    "parity_of",
    "run_torch",
]

_DRAWS = 3  # inputs that a detector is compared on at each batch size: what it finds in one says nothing of another
_SEED_STEP = 1000  # between their seeds; the first is the batch size
_NEARBY = 8  # other inputs near those compared
_NEAR: Mapping[OnnxPrecision, float] = {"fp32": 1e-5, "fp16": 2.0**-11}  # how near: shares of their deviation


@dataclass(frozen=True, kw_only=True)
class Parity:
    """One comparison of all outputs.

    Attributes:
        network: ``dense`` or ``pruned``.
        precision: Of the ONNX file.
        inputs: ``seeded`` or ``images``.
        batch: Inputs at a time.
        max_abs_error: Largest difference of a floating point output; None where it is not finite, or an output could
            not be compared, or all there is are detections.
        max_rel_error: The same, each output's divided by its largest value in torch.
        top1_agreement: Share of rows (B, classes) of the main output whose largest entry is the same.
        atol: Tolerance: this plus ``rtol`` times the output's largest value.
        rtol: See ``atol``.
        ok: Whether all outputs have the same names and shapes, the floating point ones within the tolerance, and the
            others the same values but where torch itself is undecided.
        undecided: Entries of outputs of whole numbers, such as classes, that differ where torch itself gives both
            values for inputs that differ by 1e-5 of their deviation.
        fault: What differs, by name of the output; empty where all is within the tolerance.
        size: H, W of the inputs, where they are not the plan's.
        constant: Whether the outputs differ from input to input by less than the tolerance: any file that gives them
            whatever it is given would pass.
    """

    network: str
    precision: str
    inputs: str
    batch: int
    max_abs_error: float | None
    max_rel_error: float | None
    top1_agreement: float | None
    atol: float
    rtol: float
    ok: bool
    undecided: int = 0
    fault: str = ""
    constant: bool = False
    size: tuple[int, int] | None = None
    detections: MatchedDetections | None = None


def check_seeded(
    name: str,
    network: nn.Module,
    session: Any,
    shape: InputShape,
    batches: tuple[int, ...],
    names: Sequence[str] | None = None,
    size: tuple[int, int] | None = None,
    embedding: Embedding | None = None,
    precision: OnnxPrecision = "fp32",
    tolerance: Tolerance = FLOAT32,
) -> list[Parity]:
    """Compare on inputs seeded by the batch size, images of normal values or of uniform pixels, at every batch size.

    A detector is compared on several.

    Args:
        name: ``dense`` or ``pruned``.
        network: The torch network.
        session: Runs its ONNX file.
        shape: C, H, W, or what else the network takes.
        batches: Batch sizes.
        names: Of the file's outputs, in order (see ``output_names``).
        size: H, W, for the record, where they are not the plan's.
        embedding: What the file holds before the network; it then takes images, and the network their inputs.
        precision: Of the file; the torch network computes in float32.
        tolerance: Of the outputs.

    Raises:
        ExportError: The ONNX file or the network does not run at one of them.
    """
    results = []
    takes = inputs_of(shape)
    for batch in batches:
        compared = Compared(tolerance, names)
        near = _NEAR[precision]
        for draw in range(_DRAWS):
            if draw and compared.detections is None:
                break
            seed = batch + _SEED_STEP * draw
            given = inputs = takes.drawn(batch, seed)
            if embedding is not None and takes.image_shape is not None:
                given = embedding.random_images(batch, takes.image_shape, torch.Generator().manual_seed(seed))
                inputs = embedding(given)
            theirs = _run_seeded(network, inputs, takes, batch)
            compared.add(theirs, run_onnx(session, given), partial(nearby, network, inputs, takes.names, near))
        results.append(replace(parity_of(name, compared, "seeded", batch, precision, tolerance), size=size))
    return results


def _run_seeded(network: nn.Module, inputs: ExampleInputs, takes: InputSpec, batch: int) -> Outputs:
    """What torch computes of seeded inputs.

    Raises:
        ExportError: The network does not run on them.
    """
    try:
        return run_torch(network, inputs, takes.names)
    except PruneportError:
        raise
    except Exception as error:  # a forward may raise anything
        raise ExportError(
            f"{type(network).__name__} does not run on seeded inputs, {takes} with B = {batch}: "
            f"{type(error).__name__}: {error}. Compare at batch sizes that it takes, with `parity_batches`, and "
            "prune with an example whose whole numbers are in its range."
        ) from error


def check_other_batches(network: nn.Module, exported: OnnxNetwork, shape: InputShape) -> None:
    """Check that a file for any batch is so: where a forward makes a number of the batch size, it is the example's.

    Args:
        network: What was exported, from a batch of two.
        exported: The same as ONNX.
        shape: C, H, W, or what else it takes.

    Raises:
        ExportError: It computes what torch does for a batch of two, and does not for three, or for images of another
            size where that is open.
    """
    if exported.batch is not None:
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            exported.save(Path(folder) / "model.onnx", {})
        except OSError:
            return  # there is no room to try it; the comparison of the files shows it later
        session = open_cpu_session(Path(folder) / "model.onnx")
        check = partial(check_seeded, "", network, session, names=output_names(session), embedding=exported.embedding)
        if not check(shape, (2,))[0].ok:
            return  # something else is wrong, which the comparison of the files shows
        try:
            fault = check(shape, (3,))[0].fault
        except ExportError as error:
            fault = str(error)
        size = inputs_of(shape).image_shape if open_size(session) else None
        other = other_size(size) if size else None
        try:
            resized = check(other, (2,))[0].fault if other else ""
        except ExportError as error:
            resized = str(error)
    if fault:
        raise ExportError(
            f"the ONNX file of {type(network).__name__} is right for a batch of two alone, from which it was made: its "
            "forward turns the batch size into a number. Take it from the input's shape wherever it is needed, and as "
            f"a torch size, or export for one batch size alone with `batch_size_fixed=N`. At a batch of three: {fault}"
        )
    if resized and size and other:
        raise ExportError(
            f"the ONNX file of {type(network).__name__} is right for images of {size[1]} x {size[2]} alone, from "
            "which it was made: its forward turns their size into a number. Take it from the input's shape wherever it "
            f"is needed, and as a torch size, or give `dynamic=batch`. At {other[1]} x {other[2]}: {resized}"
        )


def run_torch(network: nn.Module, inputs: ExampleInputs, names: Sequence[str] = (INPUT_NAME,)) -> Outputs:
    """What torch computes, with the outputs that an ONNX file has whose inputs have these names."""
    with torch.inference_mode():
        return onnx_outputs(run_on(network, changed(inputs, Tensor.clone)), names)  # a forward may write into them


def nearby(
    network: nn.Module,
    inputs: ExampleInputs,
    names: Sequence[str] = (INPUT_NAME,),
    near: float = _NEAR["fp32"],
) -> Iterator[Outputs]:
    """What torch computes of inputs that are nearly the same: where it changes its mind, rounding decides."""
    generator = torch.Generator().manual_seed(0)

    def moved(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        reach = near * float(tensor.std(correction=0))
        return tensor + reach * torch.randn(tensor.shape, generator=generator).to(tensor.dtype)

    for _ in range(_NEARBY):
        yield run_torch(network, changed(inputs, moved), names)


def parity_of(
    network: str,
    compared: Compared,
    inputs: str,
    batch: int,
    precision: OnnxPrecision = "fp32",
    tolerance: Tolerance = FLOAT32,
) -> Parity:
    """The record of one comparison."""
    return Parity(
        network=network,
        precision=precision,
        inputs=inputs,
        batch=batch,
        max_abs_error=compared.max_abs_error,
        max_rel_error=compared.max_rel_error,
        top1_agreement=compared.top1_agreement,
        atol=tolerance.atol,
        rtol=tolerance.rtol,
        ok=not (faults := compared.faults()),
        undecided=compared.undecided,
        fault="; ".join(faults),
        constant=compared.constant,
        detections=compared.detections,
    )
