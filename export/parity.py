"""Parity: torch and ONNX Runtime compute the same outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from pruneport.errors import ExportError, ImageFolderError
from pruneport.export.onnx_file import INPUT_NAME
from pruneport.models.images import ImageSet
from pruneport.models.outputs import tensor_leaves
from pruneport.progress import Progress, Step, silent

__all__ = [
    "TOLERANCES",
    "Accuracy",
    "Agreement",
    "Parity",
    "Tolerance",
    "check_classes",
    "check_images",
    "check_seeded",
    "open_cpu_session",
]

_IMAGE_BATCH = 32


@dataclass(frozen=True)
class Tolerance:
    """Outputs may differ by ``atol`` plus ``rtol`` times the largest output."""

    atol: float
    rtol: float


TOLERANCES: Mapping[str, Tolerance] = {"fp32": Tolerance(atol=1e-5, rtol=1e-4)}
"""Per precision: float32 kernels differ in the order of their sums, by about 1e-6 of the largest output."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """One comparison. ``max_rel_error`` is the largest difference divided by the largest torch output.

    Where the outputs are ``constant``, they differ from input to input by less than the tolerance: any file that gives
    them whatever it is given would pass.
    """

    network: str
    precision: str
    inputs: str
    batch: int
    max_abs_error: float
    max_rel_error: float
    top1_agreement: float | None
    atol: float
    rtol: float
    ok: bool
    constant: bool = False


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
    """Open an ONNX file on ONNX Runtime's CPU provider."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def check_seeded(
    name: str, network: nn.Module, session: Any, shape: tuple[int, int, int], batches: tuple[int, ...]
) -> list[Parity]:
    """Compare on normal inputs (B, C, H, W), seeded by the batch size, at every batch size.

    Raises:
        ExportError: The ONNX file does not run at one of them.
    """
    results = []
    for batch in batches:
        inputs = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(batch))
        results.append(_compare(name, _run_torch(network, inputs), _run_onnx(session, inputs), "seeded", batch))
    return results


def check_classes(images: ImageSet, shape: tuple[int, ...]) -> None:
    """Check that labels can be compared with a network's first output, whose shape (B, ...) is given.

    Raises:
        ImageFolderError: The folder's classes are not the network's.
    """
    if images.labels is not None and (len(shape) != 2 or shape[1] != len(images.classes)):
        raise ImageFolderError(
            f"{images.folder} has {len(images.classes)} class folders; the network's output has shape {shape[1:]}. "
            "Use the folder it was trained for, or a flat one without labels."
        )


def check_images(
    images: ImageSet,
    dense: nn.Module | None,
    pruned: nn.Module,
    pruned_session: Any,
    progress: Progress = silent,
) -> tuple[Parity, Accuracy | None, Agreement | None]:
    """Compare the pruned network on images, and count top-1 of dense (if given), pruned and pruned ONNX where labelled.

    Returns:
        The comparison with torch; the accuracy, where the images are labelled; how often the pruned network decides as
        the dense one, where that is given and the outputs are scores (B, classes).

    Raises:
        ImageFolderError: An image is unreadable, or the folder's classes are not the network's.
    """
    theirs: list[np.ndarray[Any, Any]] = []
    ours: list[np.ndarray[Any, Any]] = []
    choices: list[np.ndarray[Any, Any]] = []
    done = 0
    for inputs, labels in images.batches(_IMAGE_BATCH):
        progress(Step(f"running {len(images)} images", done, len(images)))
        done += len(inputs)
        torch_outputs, onnx_outputs = _run_torch(pruned, inputs), _run_onnx(pruned_session, inputs)
        theirs.append(torch_outputs[0])
        ours.append(onnx_outputs[0])
        check_classes(images, torch_outputs[0].shape)
        if _are_scores(torch_outputs[0]) and torch_outputs[0].shape == onnx_outputs[0].shape:
            dense_outputs = _run_torch(dense, inputs) if dense is not None else torch_outputs
            scores = (dense_outputs[0], torch_outputs[0], onnx_outputs[0])
            truth = np.full(len(inputs), -1) if labels is None else labels.numpy()
            choices.append(np.stack([truth, *(outputs.argmax(1) for outputs in scores)]))
    parity = _compare("pruned", [np.concatenate(theirs)], [np.concatenate(ours)], "images", _IMAGE_BATCH)
    return parity, *_count(images, choices, dense is not None)


def _count(
    images: ImageSet, choices: Sequence[np.ndarray[Any, Any]], with_dense: bool
) -> tuple[Accuracy | None, Agreement | None]:
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


def _are_scores(outputs: np.ndarray[Any, Any]) -> bool:
    """Whether there is something to choose from: (B, classes)."""
    return outputs.ndim == 2 and outputs.shape[1] > 1


def _run_torch(network: nn.Module, inputs: Tensor) -> list[np.ndarray[Any, Any]]:
    with torch.inference_mode():
        return [leaf.numpy() for leaf in tensor_leaves(network(inputs))]


def _run_onnx(session: Any, inputs: Tensor) -> list[np.ndarray[Any, Any]]:
    try:
        outputs: list[np.ndarray[Any, Any]] = session.run(None, {INPUT_NAME: inputs.numpy()})
    except Exception as error:  # ONNX Runtime's errors share no other base
        raise ExportError(
            f"the ONNX file does not run on inputs of shape {tuple(inputs.shape)}: {error}. Make the network's forward "
            "free of sizes taken as Python numbers, and export it again."
        ) from error
    return outputs


def _compare(
    network: str,
    theirs: list[np.ndarray[Any, Any]],
    ours: list[np.ndarray[Any, Any]],
    inputs: str,
    batch: int,
    precision: str = "fp32",
) -> Parity:
    tolerance = TOLERANCES[precision]
    same_shapes = [out.shape for out in theirs] == [out.shape for out in ours]
    pairs = list(zip(theirs, ours, strict=True)) if same_shapes else []
    errors = [float(np.abs(a.astype(np.float64) - b).max(initial=0)) for a, b in pairs]
    scales = [float(np.abs(a).max(initial=0)) for a, _ in pairs]
    within = [error <= tolerance.atol + tolerance.rtol * scale for error, scale in zip(errors, scales, strict=True)]
    first = pairs[0] if pairs and pairs[0][0].ndim == 2 else None
    return Parity(
        network=network,
        precision=precision,
        inputs=inputs,
        batch=batch,
        max_abs_error=max(errors, default=float("inf")),
        max_rel_error=max(
            (error / max(scale, 1e-30) for error, scale in zip(errors, scales, strict=True)),
            default=float("inf"),
        ),
        top1_agreement=None if first is None else float((first[0].argmax(1) == first[1].argmax(1)).mean()),
        atol=tolerance.atol,
        rtol=tolerance.rtol,
        ok=bool(pairs) and all(within),
        constant=bool(pairs)
        and all(_spread(a) <= tolerance.atol + tolerance.rtol * s for (a, _), s in zip(pairs, scales, strict=True)),
    )


def _spread(outputs: np.ndarray[Any, Any]) -> float:
    """How far outputs (B, ...) of different inputs lie apart at most; of one input, its own values."""
    rows = np.atleast_1d(outputs).astype(np.float64)
    rows = rows.reshape(-1, 1) if len(rows) < 2 else rows
    return float((rows.max(0) - rows.min(0)).max(initial=0))
