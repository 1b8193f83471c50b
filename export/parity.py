"""Parity: torch and ONNX Runtime compute the same outputs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from pruneport.arrays import AnyArray
from pruneport.errors import ExportError, ImageFolderError, InputError
from pruneport.export.compared import Compared, Tolerance
from pruneport.export.onnx.capture import onnx_outputs
from pruneport.export.onnx.exporter import OnnxNetwork
from pruneport.export.onnx.form import names_in, other_size
from pruneport.export.onnx.memory import within_free_memory
from pruneport.export.onnx.onnx_reader import read_onnx
from pruneport.export.options import ParityOptions
from pruneport.models.images.images import ImageSet
from pruneport.models.outputs import Outputs
from pruneport.progress import Progress, Step, silent

__all__ = [
    "TOLERANCES",
    "Accuracy",
    "Agreement",
    "Parity",
    "Tolerance",
    "check_classes",
    "check_images",
    "check_other_batches",
    "check_seeded",
    "fitting_batches",
    "fixed_batch",
    "open_cpu_session",
    "open_size",
    "output_names",
]

_IMAGE_BATCH = 32
_NEARBY, _NEAR = 8, 1e-5  # other inputs near those compared, and how near: shares of their deviation

TOLERANCES: Mapping[str, Tolerance] = {"fp32": Tolerance(atol=1e-5, rtol=1e-4)}
"""Per precision: float32 kernels differ in the order of their sums, by about 1e-6 of the largest output."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """One comparison of all outputs.

    Attributes:
        network: ``dense`` or ``pruned``.
        precision: Of the ONNX file.
        inputs: ``seeded`` or ``images``.
        batch: Inputs at a time.
        max_abs_error: Largest difference of a floating point output; None where it is not finite, or an output could
            not be compared.
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


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Top-1 on labelled images, as fractions, and how many only one of dense torch and pruned ONNX gets right."""

    images: int
    folder: str
    dense_torch: float | None
    pruned_torch: float
    pruned_onnx: float
    only_dense: int | None = None
    only_pruned: int | None = None


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Share of images, labelled or not, on which pruned ONNX has the first choice of dense torch."""

    images: int
    folder: str
    top1: float


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
    return any(not isinstance(size, int) for size in session.get_inputs()[0].shape[2:])


def fixed_batch(session: Any) -> int | None:
    """The one batch size that a session takes; None where it takes any."""
    shape = session.get_inputs()[0].shape
    return shape[0] if shape and isinstance(shape[0], int) else None


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


def check_seeded(
    name: str,
    network: nn.Module,
    session: Any,
    shape: tuple[int, int, int],
    batches: tuple[int, ...],
    names: Sequence[str] | None = None,
    size: tuple[int, int] | None = None,
) -> list[Parity]:
    """Compare on normal inputs (B, C, H, W), seeded by the batch size, at every batch size.

    Args:
        name: ``dense`` or ``pruned``.
        network: The torch network.
        session: Runs its ONNX file.
        shape: C, H, W.
        batches: Batch sizes.
        names: Of the file's outputs, in order (see ``output_names``).
        size: H, W, for the record, where they are not the plan's.

    Raises:
        ExportError: The ONNX file does not run at one of them.
    """
    results = []
    for batch in batches:
        inputs = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(batch))
        compared = Compared(TOLERANCES["fp32"], names)
        theirs = _run_torch(network, inputs)
        compared.add(theirs, _run_onnx(session, inputs), partial(_nearby, network, inputs))
        results.append(replace(_parity(name, compared, "seeded", batch), size=size))
    return results


def check_other_batches(network: nn.Module, exported: OnnxNetwork, shape: tuple[int, int, int]) -> None:
    """Check that a file for any batch is so: where a forward makes a number of the batch size, it is the example's.

    Args:
        network: What was exported, from a batch of two.
        exported: The same as ONNX.
        shape: C, H, W.

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
        names = output_names(session)
        if not check_seeded("", network, session, shape, (2,), names)[0].ok:
            return  # something else is wrong, which the comparison of the files shows
        try:
            fault = check_seeded("", network, session, shape, (3,), names)[0].fault
        except ExportError as error:
            fault = str(error)
        try:
            other = other_size(shape)
            resized = check_seeded("", network, session, other, (2,), names)[0].fault if open_size(session) else ""
        except ExportError as error:
            resized = str(error)
    if fault:
        raise ExportError(
            f"the ONNX file of {type(network).__name__} is right for a batch of two alone, from which it was made: its "
            "forward turns the batch size into a number. Take it from the input's shape wherever it is needed, and as "
            f"a torch size, or export for one batch size alone with `batch_size_fixed=N`. At a batch of three: {fault}"
        )
    if resized:
        raise ExportError(
            f"the ONNX file of {type(network).__name__} is right for images of {shape[1]} x {shape[2]} alone, from "
            "which it was made: its forward turns their size into a number. Take it from the input's shape wherever it "
            f"is needed, and as a torch size, or give `dynamic=batch`. At {other[1]} x {other[2]}: {resized}"
        )


def check_classes(images: ImageSet, shape: tuple[int, ...]) -> None:
    """Check that labels can be compared with a network's main output, whose shape (B, ...) is given.

    Raises:
        ImageFolderError: The folder's classes are not the network's.
    """
    if images.labels is not None and (len(shape) != 2 or shape[1] != len(images.classes)):
        folders = f"{len(images.classes)} class folder{'' if len(images.classes) == 1 else 's'}"
        raise ImageFolderError(
            f"{images.folder} has {folders}; the network's output has shape {shape[1:]}. "
            "Use the folder it was trained for, or a flat one without labels."
        )


def check_images(
    images: ImageSet,
    dense: nn.Module | None,
    pruned: nn.Module,
    pruned_session: Any,
    names: Sequence[str] | None = None,
    fixed: int | None = None,
    progress: Progress = silent,
) -> tuple[Parity, Accuracy | None, Agreement | None]:
    """Compare the pruned network on images, and count top-1 of dense (if given), pruned and pruned ONNX where labelled.

    Args:
        images: In the folder's order; where the batch is fixed, the last one repeats its last image to be full.
        dense: The dense network, or None.
        pruned: The pruned network.
        pruned_session: Runs its ONNX file.
        names: Of the file's outputs, in order (see ``output_names``).
        fixed: The one batch size that the file takes, or None.
        progress: Told how far it is.

    Returns:
        The comparison with torch; the accuracy, where the images are labelled; how often the pruned network decides as
        the dense one, where that is given and the main output is scores (B, classes).

    Raises:
        ImageFolderError: An image is unreadable, or the folder's classes are not the network's.
    """
    size = fixed or _IMAGE_BATCH
    compared = Compared(TOLERANCES["fp32"], names)
    choices: list[AnyArray] = []
    done = 0
    for given, labels in images.batches(size):
        progress(Step(f"running image {done + 1} of {len(images)}", done, len(images)))
        done += len(given)
        inputs = torch.cat([given, given[-1:].expand(size - len(given), *given.shape[1:])]) if fixed else given
        theirs, ours = _run_torch(pruned, inputs), _run_onnx(pruned_session, inputs)
        found = compared.add(theirs, ours, partial(_nearby, pruned, inputs)).get(theirs.main)
        wanted = _main(theirs)
        check_classes(images, wanted.shape)
        if _are_scores(wanted) and found is not None and found.shape == wanted.shape:
            before = _main(_run_torch(dense, inputs)) if dense is not None else wanted
            truth = np.full(len(given), -1) if labels is None else labels.numpy()
            choices.append(np.stack([truth, *(scores[: len(given)].argmax(1) for scores in (before, wanted, found))]))
    return _parity("pruned", compared, "images", size), *_count(images, choices, dense is not None)


def _main(outputs: Outputs) -> AnyArray:
    array: AnyArray = outputs.tensors[outputs.main].detach().numpy()
    return array


def _count(images: ImageSet, choices: Sequence[AnyArray], with_dense: bool) -> tuple[Accuracy | None, Agreement | None]:
    """Count from batches of (4, B): labels, then the choices of dense torch, pruned torch and pruned ONNX."""
    if sum(batch.shape[1] for batch in choices) < len(images):  # outputs that are no scores
        return None, None
    truth, dense, theirs, ours = np.concatenate(choices, axis=1)
    agreement = accuracy = None
    if with_dense:
        agreement = Agreement(images=len(images), folder=images.folder.name, top1=float((dense == ours).mean()))
    if images.labels is not None:
        before, after = dense == truth, ours == truth
        accuracy = Accuracy(
            images=len(images),
            folder=images.folder.name,
            dense_torch=float(before.mean()) if with_dense else None,
            pruned_torch=float((theirs == truth).mean()),
            pruned_onnx=float(after.mean()),
            only_dense=int((before & ~after).sum()) if with_dense else None,
            only_pruned=int((after & ~before).sum()) if with_dense else None,
        )
    return accuracy, agreement


def _are_scores(outputs: AnyArray) -> bool:
    """Whether there is something to choose from: (B, classes)."""
    return outputs.ndim == 2 and outputs.shape[1] > 1


def _run_torch(network: nn.Module, inputs: Tensor) -> Outputs:
    with torch.inference_mode():
        return onnx_outputs(network(inputs))


def _run_onnx(session: Any, inputs: Tensor) -> list[AnyArray]:
    """Outputs of an ONNX Runtime session."""
    try:
        with within_free_memory():
            outputs: list[AnyArray] = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    except Exception as error:  # ONNX Runtime's errors share no other base
        raise ExportError(
            f"the ONNX file does not run on inputs of shape {tuple(inputs.shape)}: {error}. Make the network's forward "
            "free of sizes taken as Python numbers, and export it again."
        ) from error
    return outputs


def _nearby(network: nn.Module, inputs: Tensor) -> Iterator[Outputs]:
    """What torch computes of inputs that are nearly the same: where it changes its mind, rounding decides."""
    generator = torch.Generator().manual_seed(0)
    reach = _NEAR * float(inputs.std(correction=0))
    for _ in range(_NEARBY):
        yield _run_torch(network, inputs + reach * torch.randn(inputs.shape, generator=generator))


def _parity(network: str, compared: Compared, inputs: str, batch: int, precision: str = "fp32") -> Parity:
    """The record of one comparison."""
    tolerance = TOLERANCES[precision]
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
    )
