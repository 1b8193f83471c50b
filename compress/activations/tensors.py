"""Calibration inputs that a Python caller has as tensors: a DataLoader, or a list."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, SequentialSampler, Subset

from pruneport.compress.activations.calibration import (
    BATCH,
    Calibration,
    check_count,
    divided,
    held_out_count,
    in_memory,
)
from pruneport.compress.activations.items import LABELS, class_indices, is_single, joined, read_item, said_of
from pruneport.compress.options import CalibrationOptions
from pruneport.compress.records import Calibrated
from pruneport.errors import ImageFolderError
from pruneport.models.inputs import InputShape, batch_of, inputs_of, rows_of_inputs
from pruneport.sequences import evenly

__all__ = ["gather_calibration"]


def gather_calibration(
    given: Iterable[Any],
    options: CalibrationOptions,
    shape: InputShape,
    *,
    outputs: int = 0,
    seed: int = 0,
    batch: int = BATCH,
) -> Calibration:
    """Read tensors until there are enough of them, and hold some out as ``open_calibration`` does.

    Args:
        given: Yields inputs as the network takes them, normalised and of floating point: (B, C, H, W), or one (C, H, W)
            at a time, alone, first in a pair with labels, or in a dict. What a network of several inputs takes comes as
            a tuple, with or without labels behind, in a pair with labels, or in a dict by name. Of a DataLoader that
            goes through its data set in order, inputs are taken evenly from all of it, and of any other the first.
        options: How many are used.
        shape: Of the network's input.
        outputs: Classes of the network: labels are class indices below it, or else left out.
        seed: Chooses the inputs that are held out.
        batch: Inputs in a batch.

    Raises:
        ImageFolderError: Nothing comes, or something that the network does not take.
    """
    count = options.calibration_images
    check_count(count)
    wanted = count + held_out_count(count)
    takes = inputs_of(shape)
    inputs: list[Sequence[Tensor]] = []
    labels: list[Tensor | None] = []
    for place, item in enumerate(_taken(given, wanted)):
        if takes.image_shape is None:
            found, classes = read_item(item, place, takes)
        else:
            image, classes = _read(item, place, takes.image_shape)
            found = [image]
        inputs.append(found)
        labels.append(classes)
        if sum(map(batch_of, inputs)) >= wanted:
            break
    if not inputs:
        images = takes.image_shape
        said = takes if images is None else f"tensors of shape (B, {', '.join(map(str, images))})"
        raise ImageFolderError(
            f"`calibration` is a {type(given).__name__} that yields nothing; expected {said}. An iterator that was "
            "read before is empty: give the DataLoader itself."
        )
    every = rows_of_inputs(takes.given(joined(inputs, takes)), slice(wanted))
    known = [part for part in labels if part is not None]
    classes = torch.cat(known)[:wanted] if len(known) == len(labels) else None
    if classes is not None and not (len(classes) and 0 <= int(classes.min()) <= int(classes.max()) < outputs):
        classes = None
    rows, held_out = _parts(batch_of(every), count, seed)
    batches = -(-len(rows) // batch)
    solving = [rows[start::batches] for start in range(batches)]
    heldout = [held_out[start : start + batch] for start in range(0, len(held_out), batch)]
    return Calibration(
        batches=in_memory([rows_of_inputs(every, part) for part in solving]),
        labels=None if classes is None else tuple(classes[part] for part in solving),
        classes=0 if classes is None else outputs,
        record=Calibrated(inputs="images", count=len(rows)),
        heldout=in_memory([rows_of_inputs(every, part) for part in heldout]),
    )


def _parts(count: int, most: int, seed: int) -> tuple[list[int], list[int]]:
    """Rows to solve with, evenly from all, and rows that are held out."""
    used = min(most, count)
    rows = [index * count // used for index in range(used)]
    extra = sorted(set(range(count)).difference(rows))
    return divided(rows, extra, seed) if len(extra) < held_out_count(used) else (rows, extra)


def _taken(given: Any, wanted: int) -> Iterator[Any]:
    """What is read: evenly over the whole of what has an order, so that not all is of its first classes."""
    if isinstance(given, Tensor):
        given = [given]
    if isinstance(given, DataLoader) and given.batch_size is not None and isinstance(given.sampler, SequentialSampler):
        if (count := len(given.dataset)) > wanted:  # type: ignore[arg-type]
            part = Subset(given.dataset, evenly(range(count), wanted))
            given = DataLoader(
                part, batch_size=given.batch_size, collate_fn=given.collate_fn, num_workers=given.num_workers
            )
    elif isinstance(given, Sequence) and not isinstance(given, str) and len(given) > wanted:
        given = evenly(given, wanted)
    try:
        yield from iter(given)
    except TypeError as error:
        if hasattr(given, "__iter__") or hasattr(given, "__getitem__"):
            raise
        raise ImageFolderError(
            f"`calibration` is a {type(given).__name__}; expected a folder, a DataLoader or a list of tensors."
        ) from error


def _read(item: Any, place: int, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor | None]:
    """The inputs (B, C, H, W) of one item, and class indices (B,) where it has some."""
    wanted = f"(B, {', '.join(map(str, shape))})"
    said = f"`calibration` yields, at place {place},"
    labels: Any = None
    found: Any = item
    if isinstance(item, Mapping):
        fitting = [value for value in item.values() if isinstance(value, Tensor) and tuple(value.shape[-3:]) == shape]
        labels = next((item[name] for name in LABELS if name in item), None)
        if not fitting:
            kinds = ", ".join(f"{name}: {said_of(value)}" for name, value in list(item.items())[:10])
            raise ImageFolderError(f"{said} a dict of {kinds or 'nothing'}; expected a tensor of shape {wanted} in it.")
        found = fitting[0]
    elif isinstance(item, tuple | list):
        found, labels = (item[0] if item else None), (item[1] if len(item) > 1 else None)
    if not isinstance(found, Tensor):
        raise ImageFolderError(
            f"{said} {said_of(found)}; expected a tensor of shape {wanted}, alone, first of a pair, or in a dict."
        )
    if found.ndim == 3:
        found = found[None]
        labels = [labels] if is_single(labels) else labels
    if found.ndim != 4 or tuple(found.shape[1:]) != shape or not len(found):
        raise ImageFolderError(f"{said} {said_of(found)}; expected {wanted}, as the network takes it.")
    if not found.is_floating_point():
        raise ImageFolderError(
            f"{said} a tensor of {found.dtype}; expected floating point, normalised as the network takes it."
        )
    found = found.detach().to("cpu", torch.float32)
    if not bool(found.isfinite().all()):
        raise ImageFolderError(f"{said} numbers that are NaN or infinite; expected finite ones.")
    return found, class_indices(labels, len(found))
