"""ONNX files against the torch networks that they were made from: validity, parity and accuracy, as one record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from pruneport.compress.activations.calibration import Batches
from pruneport.errors import BundleError, ImageFolderError, InputError
from pruneport.export.accuracy import check_images
from pruneport.export.bundle.bundle import DENSE_ONNX, MODEL_ONNX, plan_hash
from pruneport.export.cpu_session import (
    embedded_in,
    fitting_batches,
    fixed_batch,
    open_cpu_session,
    open_size,
    output_names,
)
from pruneport.export.onnx.embedding import embedding_for
from pruneport.export.onnx.form import other_size
from pruneport.export.onnx.onnx_file import check_onnx, network_sha256, read_metadata
from pruneport.export.options import OnnxPrecision, ParityOptions
from pruneport.export.parity import Parity, check_seeded
from pruneport.export.precisions.comparison import Precision
from pruneport.export.precisions.verifying import PrecisionInputs, VerifiedPrecisions, verify_precisions
from pruneport.export.verification import Check, DenseSeen, Verification
from pruneport.models.images.images import ImageSet, open_images
from pruneport.models.inputs import InputShape, inputs_of, run_on
from pruneport.models.options import PREPARATION, refuse_idle
from pruneport.models.preparation.resolve import differences
from pruneport.models.record import Preprocessing
from pruneport.progress import Note, Progress, silent

__all__ = ["check_prepared", "open_parity_images", "require_same_normalisation", "verify_files"]

_FOR_IMAGES = ("for `images`, and there are none", "Give `images=FOLDER`")


def check_prepared(options: ParityOptions) -> None:
    """Refuse what is said of how images are prepared where there are none, and no plan is made that would keep it.

    Raises:
        InputError: Names what was given.
    """
    if options.images is None:
        refuse_idle(options, PREPARATION, *_FOR_IMAGES)


def open_parity_images(
    options: ParityOptions,
    shape: InputShape,
    fixed: int | None = None,
    preprocessing: Preprocessing | None = None,
) -> ImageSet | None:
    """Check the options, and list the images where the user gives some; cheap enough to come before any work.

    Args:
        options: Batch sizes and images.
        shape: C, H, W of the input, or what else the network takes.
        fixed: The one batch size that the networks are exported for, or None.
        preprocessing: Of the images; the options have the last word.

    Raises:
        InputError: A batch size is below 1, or is not the fixed one; or there are options of images and no images.
        ImageFolderError: The images cannot be used.
    """
    fitting_batches(options, fixed)
    if options.images is None:
        refuse_idle(options, ["images_limit"], *_FOR_IMAGES)
    takes = inputs_of(shape)
    if takes.image_shape is not None:
        return open_images(options, takes.image_shape, preprocessing)
    if options.images is not None:
        raise ImageFolderError(
            f"`images` {options.images}: the network takes {takes}, no images alone. Leave it out: the files are "
            "compared on seeded inputs."
        )
    return None


def verify_files(
    folder: Path,
    dense: nn.Module | None,
    pruned: nn.Module,
    shape: InputShape,
    options: ParityOptions,
    checks: Sequence[Check] = (),
    comparable: bool = True,
    why_no_dense: str = "",
    preprocessing: Preprocessing | None = None,
    precisions: Sequence[OnnxPrecision] = ("fp32",),
    heldout: Batches = (),
    progress: Progress = silent,
    max_drop: float | None = None,
    seen: DenseSeen | None = None,
) -> Verification:
    """Check the ONNX files in ``folder`` against the torch networks.

    Args:
        folder: Holds plan.json, model.onnx and dense.onnx.
        dense: The dense network; None where it cannot be built here, and then dense.onnx is not compared, which is no
            fault: the pruned network is what ships.
        pruned: The pruned network.
        shape: C, H, W of the input, or what else the networks take.
        options: Batch sizes, and images where the user gives some.
        checks: What was checked before, put first.
        comparable: Whether the dense network's accuracy says anything beside the pruned one's; a fine-tuned network's
            dense original does not.
        why_no_dense: Why ``dense`` is None, for the record.
        preprocessing: Of the images; the options have the last word.
        precisions: Those in which there are files of both networks.
        heldout: Calibration inputs that were held out, on which they are compared where there are no images.
        progress: Told what is being done.
        max_drop: The most points of top-1 that the user would lose, for the record.
        seen: What was found of the same dense network with the same options; filled where it is empty.

    Raises:
        InputError: A batch size is below 1, or the file does not take it; or ``mean`` and ``std`` are given and are not
            those that the files hold.
        BundleError: An ONNX file belongs to another plan, or a network does not run on the plan's input.
        ExportError: An ONNX file is not valid.
        ImageFolderError: The images cannot be used.
    """
    images = open_parity_images(options, shape, preprocessing=preprocessing)
    done = [*checks, *_preparation(options, images, shape, preprocessing, progress)]
    parity: list[Parity] = []
    records: list[Precision] = []
    accuracy = agreement = None
    for name, file, network in (("dense", DENSE_ONNX, dense), ("pruned", MODEL_ONNX, pruned)):
        path = folder / file
        progress(f"checking {file}")
        done.append(Check(name="onnx.checker", ok=True, detail=check_onnx(path)))
        found = read_metadata(path).get("plan_sha256")
        if found != plan_hash(folder):
            raise BundleError(f"{path} was exported for another plan ({found}); export it again.")
        reusable = set(precisions) <= {"fp32"}
        if name == "dense" and seen is not None and reusable and seen.network_sha256 == network_sha256(path):
            parity += seen.parity
            continue
        session = open_cpu_session(path)
        names, fixed = output_names(session), fixed_batch(session)
        batches = fitting_batches(options, fixed)
        image_shape = inputs_of(shape).image_shape
        embedding = embedding_for(embedded_in(session), preprocessing, image_shape)
        if images is not None and embedding is not None and preprocessing is not None:
            require_same_normalisation(images.preprocessing, preprocessing)
        inputs = PrecisionInputs(images=images, heldout=heldout, classified=comparable or name == "pruned")
        others = partial(
            verify_precisions, folder, file, name, network, shape, precisions, batches, inputs, embedding, progress
        )
        if network is None:
            done.append(Check(name="parity", ok=True, detail=f"{file} not compared: {why_no_dense}"))
            _gather(others(), done, parity, records)
            continue
        progress(f"comparing {file} with torch")
        _require_forward(name, network, shape, fixed or 1)
        parity += check_seeded(name, network, session, shape, batches, names, embedding=embedding)
        if open_size(session) and image_shape is not None:
            other = other_size(image_shape)
            _require_forward(name, network, other, 1)
            parity += check_seeded(name, network, session, other, batches, names, other[1:], embedding)
        if name == "pruned" and images is not None:
            compared = dense if comparable else None
            known = None if seen is None else seen.choices
            on_images, accuracy, agreement = check_images(
                images, compared, pruned, session, names, fixed, progress, embedding, known
            )
            parity.append(on_images)
        if name == "dense" and seen is not None:
            seen.network_sha256, seen.parity, seen.choices = network_sha256(path), list(parity), {}
        _gather(others(), done, parity, records)
    return Verification(
        checks=tuple(done),
        parity=tuple(parity),
        accuracy=accuracy,
        agreement=agreement,
        max_drop=max_drop,
        precisions=tuple(records),
        files={path.name: path.stat().st_size for path in sorted(folder.glob("*.onnx*"))},
    )


def _preparation(
    options: ParityOptions,
    images: ImageSet | None,
    shape: InputShape,
    known: Preprocessing | None,
    progress: Progress,
) -> Iterator[Check]:
    """Say where images are prepared otherwise than the plan says, which is no fault, but another measurement."""
    if (
        images is not None
        and known is not None
        and (size := inputs_of(shape).image_shape)
        and (found := differences(known, images.preprocessing, size))
    ):
        said = f"images are prepared otherwise than the plan says: {', '.join(found)}; accuracy is measured so"
        progress(Note(said))
        yield Check(name="preparation", ok=True, detail=said)


def _gather(found: VerifiedPrecisions, checks: list[Check], parity: list[Parity], records: list[Precision]) -> None:
    """Put what was found of a network's other precisions beside the rest."""
    checks += [Check(name=name, ok=ok, detail=detail) for name, ok, detail in found.checks]
    parity += found.parity
    records += found.records


def _require_forward(name: str, network: nn.Module, shape: InputShape, batch: int) -> None:
    """Run the network once: a plan can set attributes and sizes that its forward does not go with.

    Raises:
        BundleError: It does not run.
    """
    takes = inputs_of(shape)
    try:
        with torch.inference_mode():
            run_on(network, takes.filled(batch))
    except Exception as error:  # whatever the network's own code raises
        images = takes.image_shape
        said = f"inputs {takes}, here with B = {batch}," if images is None else f"an input of shape {(batch, *images)}"
        raise BundleError(
            f"the {name} network does not run on {said}: {type(error).__name__}: {error}. The "
            "plan was damaged or edited, or the factory is another one; compress again."
        ) from error


def require_same_normalisation(given: Preprocessing, embedded: Preprocessing) -> None:
    """Check that images are to be normalised as a file that does so itself normalises them.

    Raises:
        InputError: They are not.
    """
    if (given.mean, given.std) != (embedded.mean, embedded.std):
        raise InputError(
            f"`mean` and `std` are {given.mean} and {given.std}, and the ONNX files normalise images themselves, by "
            f"{embedded.mean} and {embedded.std}: leave out `mean` and `std`."
        )
