"""Calibration inputs: images from a folder, in batches that load when they are called for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pruneport.compress.options import CalibrationOptions
from pruneport.compress.record import Calibrated
from pruneport.errors import ImageFolderError
from pruneport.models.images import open_images
from pruneport.models.options import ImageOptions

__all__ = ["BATCH", "Batches", "Calibration", "check_count", "held", "open_calibration"]

BATCH = 32
Batches = Sequence[Callable[[], Tensor]]
"""Inputs (B, C, H, W), each loaded when it is called for; the same every time."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Inputs to score, measure and recover with.

    Attributes:
        batches: The inputs; every batch is spread over the whole set.
        labels: Class indices (B,) of each batch, or None where the folder has no class folders.
        classes: Number of class folders.
        record: What the plan says of them.
    """

    batches: Batches
    labels: tuple[Tensor, ...] | None = None
    classes: int = 0
    record: Calibrated


def check_count(count: int) -> None:
    """Raise an ``ImageFolderError`` where so many calibration images cannot be used."""
    if count < 1:
        raise ImageFolderError(f"--calibration-images is {count}; expected at least 1.")


def open_calibration(options: CalibrationOptions, shape: tuple[int, int, int]) -> Calibration | None:
    """List the calibration images and decode each once, so that a corrupt one is met before any work.

    Returns:
        The images as batches, or None where no folder was given.

    Raises:
        ImageFolderError: No such folder, no images in it, one that cannot be read, or they cannot be inputs of
            this shape.
    """
    check_count(options.calibration_images)
    images = open_images(
        ImageOptions(
            images=options.calibration,
            images_limit=options.calibration_images,
            resize=options.resize,
            mean=options.mean,
            std=options.std,
        ),
        shape,
    )
    if images is None:
        return None
    unreadable = images.unreadable()
    if unreadable and not options.skip_unreadable:
        shown = "; ".join(unreadable.values())
        raise ImageFolderError(f"{shown} Or leave such images out with --skip-unreadable.")
    skipped = tuple(str(images.paths[row]) for row in unreadable)
    images = images.part([row for row in range(len(images)) if row not in unreadable])
    if not len(images):
        raise ImageFolderError(f"none of the {len(unreadable)} images taken from {images.folder} can be read.")
    parts = images.spread(BATCH)
    return Calibration(
        batches=[_loader(lambda part=part: next(part.batches(len(part)))[0]) for part in parts],  # type: ignore[misc]
        labels=tuple(torch.tensor(part.labels) for part in parts) if images.labels is not None else None,
        classes=len(images.classes),
        record=Calibrated(inputs="images", count=len(images), skipped=skipped),
    )


def held(inputs: Sequence[Tensor]) -> Batches:
    """Batches of inputs that are in memory."""
    return [_loader(lambda part=part: part.clone()) for part in inputs]  # type: ignore[misc]


def _loader(load: Callable[[], Tensor]) -> Callable[[], Tensor]:
    return lambda: load().contiguous(memory_format=torch.channels_last)  # in which torch's convolutions are fastest
