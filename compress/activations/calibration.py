"""Calibration inputs: images from a folder, in batches that load when they are called for.

Some are held out: nothing is scored, chosen or solved with them, so that what is measured on them holds for others too.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pruneport.compress.options import CalibrationImages
from pruneport.compress.records import Calibrated
from pruneport.errors import ImageFolderError
from pruneport.models.images.images import ImageSet, list_folder
from pruneport.models.inputs import ExampleInputs, batch_of, changed, rows_of_inputs
from pruneport.models.preparation.resolve import resolve
from pruneport.models.record import Preprocessing
from pruneport.sequences import evenly
from pruneport.text import escaped

__all__ = [
    "BATCH",
    "FOR_IMAGES",
    "LEAST_HELD_OUT",
    "Batches",
    "Calibration",
    "check_count",
    "divided",
    "halved",
    "held_out_count",
    "in_memory",
    "list_images",
    "open_calibration",
    "set_aside",
]

BATCH = 32
LEAST_HELD_OUT = 16  # and as many must be left
_PART = 8  # inputs in a batch that is divided
FOR_IMAGES = ("for the images of `calibration`, and there are none", "Give `calibration=FOLDER`")
"""Why options of images are refused without a folder, and what would let them be read: see ``refuse_idle``."""
Batches = Sequence[Callable[[], ExampleInputs]]
"""Inputs, such as images (B, C, H, W), each loaded when it is called for; the same every time."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Inputs to score, measure and recover with.

    Attributes:
        batches: The inputs; every batch is spread over the whole set.
        labels: Class indices (B,) of each batch, or None where the folder has no class folders.
        classes: Number of class folders.
        record: What the plan says of them.
        heldout: Other inputs, for measuring the result alone; empty where there are too few.
    """

    batches: Batches
    labels: tuple[Tensor, ...] | None = None
    classes: int = 0
    record: Calibrated
    heldout: Batches = ()


def check_count(count: int) -> None:
    """Raise an ``ImageFolderError`` where so many calibration images cannot be used."""
    if count < 1:
        raise ImageFolderError(f"`calibration_images` is {count}; expected at least 1.")


def list_images(
    options: CalibrationImages, shape: tuple[int, int, int], known: Preprocessing | None = None
) -> ImageSet | None:
    """Every image of the calibration folder, none of them read yet; None where no folder was given.

    Raises:
        ImageFolderError: No such folder, no images in it, or they cannot be inputs of this shape.
    """
    check_count(options.calibration_images)
    if options.calibration is None:
        return None
    return list_folder(options.calibration, shape, resolve(options, shape, known))


def held_out_count(count: int) -> int:
    """How many inputs are held out beside ``count``: a tenth as many, at least 16."""
    return max(LEAST_HELD_OUT, -(-count // 10))


def open_calibration(
    options: CalibrationImages,
    shape: tuple[int, int, int],
    known: Preprocessing | None = None,
    *,
    hold_out: bool = False,
    seed: int = 0,
    batch: int = BATCH,
) -> Calibration | None:
    """List the calibration images and decode each once, so that a corrupt one is met before any work.

    Args:
        options: The folder, how many of its images are used and how they are prepared.
        shape: C, H, W of the network's input.
        known: What the network's source or plan says of their preparation; the options have the last word.
        hold_out: Whether images are held out. They come on top of those asked for where the folder has enough: a tenth
            as many, at least 16. Else a tenth of all, at least 16, is taken from them, and none of fewer than 32.
        seed: Chooses the images that are held out, one from each of equal runs of the sorted folder.
        batch: Images in a batch.

    Returns:
        The images as batches, or None where no folder was given.

    Raises:
        ImageFolderError: No such folder, no images in it, one that cannot be read, or they cannot be inputs of
            this shape.
    """
    images = list_images(options, shape, known)
    if images is None:
        return None
    count = min(options.calibration_images, len(images))
    rows = evenly(range(len(images)), count)
    spare = sorted(set(range(len(images))).difference(rows)) if hold_out else []
    extra = _spread(spare, min(held_out_count(count), len(spare)), seed)
    taken = images.part([*rows, *extra])
    unreadable = taken.unreadable()
    if unreadable and not options.skip_unreadable:
        shown = "; ".join(unreadable.values())
        raise ImageFolderError(f"{shown} Or leave such images out with `skip_unreadable`.")
    bad = {([*rows, *extra])[place] for place in unreadable}
    rows, extra = ([row for row in part if row not in bad] for part in (rows, extra))
    if not rows:
        raise ImageFolderError(f"none of the {len(unreadable)} images taken from {images.folder} can be read.")
    if hold_out and len(extra) < held_out_count(len(rows)):
        rows, extra = divided(rows, extra, seed)
    solving, heldout = images.part(rows), images.part(extra)
    parts = solving.spread(batch)
    return Calibration(
        batches=_loaded(parts),
        labels=tuple(torch.tensor(part.labels) for part in parts) if images.labels is not None else None,
        classes=len(images.classes),
        record=Calibrated(
            inputs="images", count=len(rows), skipped=tuple(escaped(str(taken.paths[place])) for place in unreadable)
        ),
        heldout=_loaded(heldout.spread(batch)) if extra else (),
    )


def in_memory(inputs: Sequence[ExampleInputs]) -> Batches:
    """Batches of inputs that are in memory."""
    return [_loader(lambda part=part: changed(part, Tensor.clone)) for part in inputs]  # type: ignore[misc]


def set_aside(batches: Batches) -> tuple[Batches, Batches]:
    """Divide inputs into those that weights are fitted to, and a tenth that says how they are best fitted.

    Of every batch the last rows are set aside, so that of synthetic inputs all views go together; of batches too small
    for that, every tenth.

    Returns:
        Both; the second stays in memory. It is empty where there are fewer than 32 inputs.
    """
    sizes, ends, last = [], [], []
    for load in batches:
        inputs = load()
        sizes.append(batch_of(inputs))
        ends.append(sizes[-1] - -(-sizes[-1] // 10))
        last.append(rows_of_inputs(inputs, slice(ends[-1], None)))
    if sum(sizes) < 2 * LEAST_HELD_OUT:
        return batches, ()
    if min(sizes) < _PART:
        aside = [load for place, load in enumerate(batches) if place % 10 == 9]
        return [load for place, load in enumerate(batches) if place % 10 != 9], in_memory([load() for load in aside])
    kept = [
        _loader(lambda load=load, end=end: rows_of_inputs(load(), slice(end)))  # type: ignore[misc]
        for load, end in zip(batches, ends, strict=True)
    ]
    return kept, in_memory(last)


def halved(batches: Batches) -> Batches:
    """The same inputs in batches of half the size; each half loads its whole batch."""
    parts: list[Callable[[], ExampleInputs]] = []
    for load in batches:
        count = batch_of(load())
        half = -(-count // 2)
        for rows in (slice(half), slice(half, count)):
            if rows.start is None or half < count:
                parts.append(lambda load=load, rows=rows: rows_of_inputs(load(), rows))  # type: ignore[misc]
    return parts


def _spread(rows: Sequence[int], count: int, seed: int) -> list[int]:
    """``count`` of the rows, drawn one from each of as many equal runs: from every class folder alike."""
    draw = random.Random(seed)
    edges = [place * len(rows) // count for place in range(count + 1)] if count else []
    return [rows[draw.randrange(start, end)] for start, end in itertools.pairwise(edges)]


def divided(rows: list[int], extra: list[int], seed: int) -> tuple[list[int], list[int]]:
    """Rows to solve with and rows that are held out, of all; none where they are too few."""
    pool = sorted([*rows, *extra])
    if len(pool) < 2 * LEAST_HELD_OUT:
        return rows, []
    extra = _spread(pool, held_out_count(len(pool)), seed)
    return [row for row in pool if row not in set(extra)], extra


def _loaded(parts: Sequence[ImageSet]) -> Batches:
    return [_loader(lambda part=part: next(part.batches(len(part)))[0]) for part in parts]  # type: ignore[misc]


def _loader(load: Callable[[], ExampleInputs]) -> Callable[[], ExampleInputs]:
    return lambda: changed(load(), _channels_last)


def _channels_last(tensor: Tensor) -> Tensor:
    """Images in the order in which torch's convolutions are fastest."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
