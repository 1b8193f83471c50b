"""Verification: hashes, ONNX validity, parity with torch and accuracy, as one record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pruneport.compress.activations.calibration import Batches
from pruneport.errors import BundleError, InputError, ParityError
from pruneport.export.accuracy import Accuracy, Agreement, check_images
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
from pruneport.export.onnx.onnx_file import check_onnx, read_metadata
from pruneport.export.options import OnnxPrecision, ParityOptions
from pruneport.export.parity import Parity, check_seeded
from pruneport.export.precisions.comparison import Precision
from pruneport.export.precisions.verifying import PrecisionInputs, VerifiedPrecisions, verify_precisions
from pruneport.models.images.images import ImageSet, open_images
from pruneport.models.record import Preprocessing
from pruneport.progress import Progress, silent

__all__ = [
    "Check",
    "Verification",
    "open_parity_images",
    "require_parity",
    "require_same_normalisation",
    "verify_files",
]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One yes-or-no check and what it saw."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True, kw_only=True)
class Verification:
    """Everything that was checked; ``verify.json`` holds it."""

    checks: tuple[Check, ...]
    parity: tuple[Parity, ...]
    accuracy: Accuracy | None
    files: Mapping[str, int]
    agreement: Agreement | None = None
    precisions: tuple[Precision, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every check and every comparison passed."""
        return all(check.ok for check in self.checks) and all(entry.ok for entry in self.parity)

    def to_dict(self) -> dict[str, Any]:
        """The content of verify.json."""
        return {"format_version": 1, "ok": self.ok, **asdict(self)}


def open_parity_images(
    options: ParityOptions,
    shape: tuple[int, int, int],
    fixed: int | None = None,
    preprocessing: Preprocessing | None = None,
) -> ImageSet | None:
    """Check the options, and list the images where the user gives some; cheap enough to come before any work.

    Args:
        options: Batch sizes and images.
        shape: C, H, W of the input.
        fixed: The one batch size that the networks are exported for, or None.
        preprocessing: Of the images; the options have the last word.

    Raises:
        InputError: A batch size is below 1, or is not the fixed one.
        ImageFolderError: The images cannot be used.
    """
    fitting_batches(options, fixed)
    return open_images(options, shape, preprocessing)


def verify_files(
    folder: Path,
    dense: nn.Module | None,
    pruned: nn.Module,
    shape: tuple[int, int, int],
    options: ParityOptions,
    checks: Sequence[Check] = (),
    comparable: bool = True,
    why_no_dense: str = "",
    preprocessing: Preprocessing | None = None,
    precisions: Sequence[OnnxPrecision] = ("fp32",),
    heldout: Batches = (),
    progress: Progress = silent,
) -> Verification:
    """Check the ONNX files in ``folder`` against the torch networks.

    Args:
        folder: Holds plan.json, model.onnx and dense.onnx.
        dense: The dense network; None where it cannot be built here, and then dense.onnx is not compared, which is no
            fault: the pruned network is what ships.
        pruned: The pruned network.
        shape: C, H, W of the input.
        options: Batch sizes, and images where the user gives some.
        checks: What was checked before, put first.
        comparable: Whether the dense network's accuracy says anything beside the pruned one's; a fine-tuned network's
            dense original does not.
        why_no_dense: Why ``dense`` is None, for the record.
        preprocessing: Of the images; the options have the last word.
        precisions: Those in which there are files of both networks.
        heldout: Calibration inputs that were held out, on which they are compared where there are no images.
        progress: Told what is being done.

    Raises:
        InputError: A batch size is below 1, or the file does not take it; or ``mean`` and ``std`` are given and are not
            those that the files hold.
        BundleError: An ONNX file belongs to another plan, or a network does not run on the plan's input.
        ExportError: An ONNX file is not valid.
        ImageFolderError: The images cannot be used.
    """
    images = open_parity_images(options, shape, preprocessing=preprocessing)
    done = list(checks)
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
        session = open_cpu_session(path)
        names, fixed = output_names(session), fixed_batch(session)
        batches = fitting_batches(options, fixed)
        embedding = embedding_for(embedded_in(session), preprocessing, shape)
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
        _require_forward(name, network, (fixed or 1, *shape))
        parity += check_seeded(name, network, session, shape, batches, names, embedding=embedding)
        if open_size(session):
            other = other_size(shape)
            _require_forward(name, network, (1, *other))
            parity += check_seeded(name, network, session, other, batches, names, other[1:], embedding)
        if name == "pruned" and images is not None:
            on_images, accuracy, agreement = check_images(
                images, dense if comparable else None, pruned, session, names, fixed, progress, embedding
            )
            parity.append(on_images)
        _gather(others(), done, parity, records)
    return Verification(
        checks=tuple(done),
        parity=tuple(parity),
        accuracy=accuracy,
        agreement=agreement,
        precisions=tuple(records),
        files={path.name: path.stat().st_size for path in sorted(folder.glob("*.onnx*"))},
    )


def _gather(found: VerifiedPrecisions, checks: list[Check], parity: list[Parity], records: list[Precision]) -> None:
    """Put what was found of a network's other precisions beside the rest."""
    checks += [Check(name=name, ok=ok, detail=detail) for name, ok, detail in found.checks]
    parity += found.parity
    records += found.records


def _require_forward(name: str, network: nn.Module, shape: tuple[int, ...]) -> None:
    """Run the network once: a plan can set attributes and sizes that its forward does not go with.

    Raises:
        BundleError: It does not run.
    """
    try:
        with torch.inference_mode():
            network(torch.zeros(shape))
    except Exception as error:  # whatever the network's own code raises
        raise BundleError(
            f"the {name} network does not run on an input of shape {shape}: {type(error).__name__}: {error}. The "
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


def require_parity(verification: Verification) -> None:
    """Raise where something did not pass.

    Raises:
        ParityError: Names every check that failed, or every comparison out of tolerance.
    """
    if wrong := [check for check in verification.checks if not check.ok]:
        lines = [f"  {check.name}: {check.detail}" for check in wrong]
        raise ParityError("Checks failed:\n" + "\n".join(lines))
    failed = [entry for entry in verification.parity if not entry.ok]
    if failed:
        lines = [
            f"  {entry.network} {entry.precision} on {entry.inputs} inputs{_sized(entry)}, batch {entry.batch}: max "
            f"error {_small(entry.max_abs_error)} ({_small(entry.max_rel_error)} of the largest output), allowed "
            f"{entry.atol:g} + {entry.rtol:g} of the largest output: {entry.fault}"
            for entry in failed
        ]
        raise ParityError("ONNX Runtime and torch disagree:\n" + "\n".join(lines))


def _sized(entry: Parity) -> str:
    return "" if entry.size is None else f" of {entry.size[0]} x {entry.size[1]}"


def _small(error: float | None) -> str:
    return "not to be had" if error is None else f"{error:.2e}"
