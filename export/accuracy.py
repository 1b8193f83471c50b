"""Top-1 on images, and how often pruned ONNX decides as dense torch; the images are compared as seeded inputs are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from pruneport.arrays import AnyArray
from pruneport.errors import AccuracyError, ImageFolderError, InputError
from pruneport.export.compared import Compared
from pruneport.export.cpu_session import filled, run_onnx
from pruneport.export.onnx.embedding import Embedding
from pruneport.export.parity import Parity, nearby, parity_of, run_torch
from pruneport.models.images.images import ImageSet
from pruneport.models.outputs import FLOAT32, Outputs
from pruneport.progress import Progress, Step, silent

__all__ = [
    "ROUNDING",
    "Accuracy",
    "Agreement",
    "check_classes",
    "check_images",
    "check_labelled",
    "check_max_drop",
    "require_accuracy",
]

ROUNDING = 1e-9
"""Points of top-1 that a share of images may be off as a number."""
_IMAGE_BATCH = 32


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

    @property
    def drop(self) -> float | None:
        """Points of top-1 that the pruned ONNX file loses; None where the dense network was not run."""
        return None if self.dense_torch is None else 100 * (self.dense_torch - self.pruned_onnx)


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Share of images, labelled or not, on which pruned ONNX has the first choice of dense torch."""

    images: int
    folder: str
    top1: float


def check_classes(images: ImageSet, shape: tuple[int, ...]) -> None:
    """Check that labels can be compared with a network's main output, whose shape (B, ...) is given.

    Raises:
        ImageFolderError: The folder's classes are not the network's.
    """
    if images.labels is not None and (len(shape) != 2 or shape[1] != len(images.classes)):
        folders = f"{len(images.classes)} class folder{'' if len(images.classes) == 1 else 's'}"
        output = (
            f"; the network's output has shape {shape[1:]}" if len(shape) > 1 else "; the network scores no classes"
        )
        raise ImageFolderError(
            f"{images.folder} has {folders}{output}. Use the folder it was trained for, or a flat one without labels."
        )


def check_max_drop(max_drop: float) -> None:
    """Raise where it is no number of points of top-1 that a network can lose.

    Raises:
        InputError: It is negative, or above 100.
    """
    if not 0 <= max_drop <= 100:
        raise InputError(f"`max_drop` is {max_drop:g}; expected points of top-1 from 0 to 100, such as 1.")


def check_labelled(images: ImageSet | None) -> None:
    """Raise where no accuracy can be counted.

    Raises:
        ImageFolderError: There are no images, or these have no labels.
    """
    if images is None:
        raise ImageFolderError("`max_drop` needs labelled images: give `images=FOLDER` with a folder for each class.")
    if images.labels is None:
        raise ImageFolderError(
            f"`max_drop` needs labelled images, and {images.folder} has no class folders; expected "
            f"{images.folder}/CLASS/*.png with a folder for each class."
        )


def require_accuracy(accuracy: Accuracy | None, max_drop: float) -> None:
    """Raise where more top-1 was lost than was allowed.

    Raises:
        AccuracyError: It was.
    """
    drop = None if accuracy is None else accuracy.drop
    if accuracy is not None and drop is not None and drop > max_drop + ROUNDING:
        raise AccuracyError(
            f"{drop:.2f} points of top-1 were lost on {accuracy.images} images of {accuracy.folder}, and at most "
            f"{max_drop:g} were allowed. Keep more, calibrate with more images, or fine-tune with pruneport finetune."
        )


def check_images(
    images: ImageSet,
    dense: nn.Module | None,
    pruned: nn.Module,
    pruned_session: Any,
    names: Sequence[str] | None = None,
    fixed: int | None = None,
    progress: Progress = silent,
    embedding: Embedding | None = None,
    dense_choices: dict[int, AnyArray] | None = None,
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
        embedding: What the file holds before the network: it then gets pixels, and the network what they are prepared
            to.
        dense_choices: What the dense network chose on the same images, by number of the batch, from an earlier call;
            what it lacks is added, for a later one.

    Returns:
        The comparison with torch; the accuracy, where the images are labelled; how often the pruned network decides as
        the dense one, where that is given and the main output is scores (B, classes).

    Raises:
        ImageFolderError: An image is unreadable, or the folder's classes are not the network's.
    """
    size = fixed or _IMAGE_BATCH
    compared = Compared(FLOAT32, names)
    choices: list[AnyArray] = []
    done = 0
    known = {} if dense_choices is None else dense_choices
    for number, (given, labels) in enumerate(images.pixel_batches(size)):
        progress(Step(f"running image {done + 1} of {len(images)}", done, len(images)))
        done += len(given)
        pixels = filled(given, fixed)
        inputs = images.normalised_batch(pixels)
        ours = run_onnx(pruned_session, inputs if embedding is None else embedding.images_of(pixels))
        theirs = run_torch(pruned, inputs)
        found = compared.add(theirs, ours, partial(nearby, pruned, inputs)).get(theirs.main)
        wanted = _main(theirs)
        check_classes(images, wanted.shape)
        if _are_scores(wanted) and found is not None and found.shape == wanted.shape:
            count = len(given)
            theirs_chosen, ours_chosen = wanted[:count].argmax(1), found[:count].argmax(1)
            if dense is not None and number not in known:
                known[number] = _main(run_torch(dense, inputs))[:count].argmax(1)
            truth = np.full(count, -1) if labels is None else labels.numpy()
            choices.append(np.stack([truth, known.get(number, theirs_chosen), theirs_chosen, ours_chosen]))
    return parity_of("pruned", compared, "images", size), *_count(images, choices, dense is not None)


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
