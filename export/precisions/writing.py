"""A network's fp16 and int8 files, written beside its fp32 file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from pruneport.compress.activations.calibration import Calibration
from pruneport.compress.activations.synthetic import has_statistics
from pruneport.compress.options import CalibrationImages
from pruneport.errors import InputError
from pruneport.export.bundle.bundle import onnx_name
from pruneport.export.onnx.capture import finds_boxes
from pruneport.export.onnx.onnx_network import OnnxNetwork
from pruneport.export.options import ExportOptions
from pruneport.export.precisions.float_choice import FloatChooser
from pruneport.export.precisions.float_layers import matching
from pruneport.export.precisions.half import check_half
from pruneport.export.precisions.providers import int8_provider
from pruneport.export.precisions.quantise import quantise
from pruneport.export.precisions.quantiser import left_in_float
from pruneport.models.inputs import InputShape, inputs_of
from pruneport.progress import Note, Progress

__all__ = ["check_int8_inputs", "check_kind", "write_precisions"]


def check_kind(form: ExportOptions, network: nn.Module, shape: InputShape) -> None:
    """Check that a network is of a kind whose other precisions can be compared with fp32: it takes images, and scores.

    Args:
        form: What the files are to be like.
        network: In torch.
        shape: What it takes.

    Raises:
        InputError: Other precisions are asked for, and it is not.
    """
    if set(form.precisions) <= {"fp32"}:
        return
    kind, takes = type(network).__name__, inputs_of(shape)
    if takes.image_shape is None:
        raise InputError(
            f"`precisions`: fp16 and int8 are made of networks that take images, and {kind} takes {takes}."
        )
    if finds_boxes(network, shape):
        raise InputError(
            f"`precisions`: {kind} finds boxes, of which another precision finds others; leave out fp16 and int8."
        )


def check_int8_inputs(
    form: ExportOptions, inputs: CalibrationImages, dense: nn.Module, *, calibrated: bool = False
) -> None:
    """Check, before any work, that int8 can be calibrated.

    Args:
        form: What the files are to be like.
        inputs: Name the calibration images, or none.
        dense: The dense network, from whose BatchNorms inputs can be made.
        calibrated: Whether there are inputs besides images.

    Raises:
        InputError: int8 is asked for, and there is nothing to calibrate it with. Or layers are to stay in float that
            are not there, or in no int8 file.
    """
    if form.float_layers and "int8" not in form.precisions:
        raise InputError("`float_layers` is for int8: add int8 to `precisions`, or leave out `float_layers`.")
    names = [name for name, _ in dense.named_modules()]
    if unmatched := [pattern for pattern in form.float_layers if not matching(names, [pattern])]:
        raise InputError(
            f"`float_layers` {', '.join(unmatched)} matches no module of the network; its modules are called "
            f"{', '.join([name for name in names if name][:10])} and so on. `pruneport inspect` with `members` names "
            "them."
        )
    given = calibrated or inputs.calibration is not None
    if "int8" in form.precisions and not given and not has_statistics(dense):
        raise InputError(
            "`precisions` has int8, whose ranges are measured on calibration inputs; no images are given, and the "
            "network has no BatchNorm statistics to make inputs from. Give images with `calibration=FOLDER`, or leave "
            "int8 out of `precisions`."
        )


def write_precisions(
    folder: Path,
    file: str,
    name: str,
    network: nn.Module,
    exported: OnnxNetwork,
    half: OnnxNetwork | None,
    metadata: Mapping[str, str],
    provider: str,
    calibration: Calibration | None,
    progress: Progress,
    max_drop: float | None = None,
) -> None:
    """Write what was asked for in ``exported.options.precisions`` besides fp32.

    Args:
        folder: Holds the fp32 file.
        file: Its name.
        name: ``dense`` or ``pruned``.
        network: In torch.
        exported: What the fp32 file was written from.
        half: The same in fp16, where that was asked for.
        metadata: As of the fp32 file.
        provider: Of ONNX Runtime, that int8 is for.
        calibration: Inputs to calibrate int8 with, and to see with that numbers fit in fp16.
        progress: Told what is being done.
        max_drop: The most points of top-1 that int8 may lose against fp32, on the calibration inputs.

    Raises:
        ExportError: Numbers do not fit in fp16, or the quantiser fails.
    """
    options = exported.options
    if half is not None:
        if calibration is not None:
            check_half(name, network, (load() for load in calibration.batches))
        half.save(folder / onnx_name(file, "fp16"), metadata)
    if "int8" in options.precisions:
        if calibration is None:
            raise InputError("`precisions` has int8, and there are no calibration inputs; give `calibration`.")
        target = folder / onnx_name(file, "int8")
        progress(f"calibrating {target.name}")
        used, int8_for = calibration.record, int8_provider(provider)
        kept = quantise(
            folder / file,
            target,
            calibration.batches,
            int8_for,
            f"{used.count} {'images' if used.inputs == 'images' else used.inputs + ' inputs'}",
            choose=FloatChooser(
                provider=int8_for,
                patterns=options.float_layers,
                max_drop=max_drop,
                calibration=calibration,
                embedding=exported.embedding,
                progress=progress,
            ),
            embedding=exported.embedding,
            external_data=options.external_data,
            progress=progress,
        )
        if kept.layers:
            progress(Note(f"{target.name} has {kept}"))
        if floats := left_in_float(folder / file, int8_for):
            listed = ", ".join(f"{count} {operator}" for operator, count in floats.items())
            progress(Note(f"{target.name} computes in float what the quantiser leaves there: {listed}"))
