"""Calibration inputs of networks that take other things than images: one item of a DataLoader or a list, read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pruneport.errors import ImageFolderError
from pruneport.models.inputs import InputSpec, TensorSpec

__all__ = ["LABELS", "class_indices", "is_single", "joined", "read_item", "said_of"]

LABELS = ("label", "labels", "target", "targets", "y")
"""Keys of a dict under which labels are looked for."""


def read_item(item: Any, place: int, takes: InputSpec) -> tuple[list[Tensor], Tensor | None]:
    """The tensors of one item, each with its batch, and class indices (B,) where it has some.

    Args:
        item: A tensor, a tuple with or without labels behind, a pair of a tuple or a dict with labels, or a dict.
        place: Of the item, for messages.
        takes: What the network takes.

    Raises:
        ImageFolderError: It is not what the network takes.
    """
    parts, labels = _parts(item, takes)
    if parts is None or not all(isinstance(part, Tensor) for part in parts):
        raise _refused(place, item, takes)
    single = all(part.ndim == len(spec.shape) for part, spec in zip(parts, takes.tensors, strict=True))
    tensors = []
    for part, spec in zip(parts, takes.tensors, strict=True):
        tensor = part[None] if single and spec.batched else part
        if tuple(tensor.shape[spec.batched :]) != spec.shape or tensor.ndim != len(spec.shape) + spec.batched:
            raise _refused(place, item, takes)
        tensors.append(_as_taken(tensor, spec, place))
    batches = {len(tensor) for tensor, spec in zip(tensors, takes.tensors, strict=True) if spec.batched}
    if len(batches) > 1 or 0 in batches:
        raise _refused(place, item, takes)
    return tensors, class_indices([labels] if single and is_single(labels) else labels, max(batches, default=1))


def joined(items: Sequence[Sequence[Tensor]], takes: InputSpec) -> list[Tensor]:
    """The tensors of all items, one behind the other.

    Raises:
        ImageFolderError: A number that belongs to whole batches is not the same in all.
    """
    made = []
    for spec, parts in zip(takes.tensors, zip(*items, strict=True), strict=True):
        if not spec.batched and any(not torch.equal(part, parts[0]) for part in parts):
            raise ImageFolderError(
                f"`calibration` yields several values of {spec.name}, a single number for a whole batch; expected the "
                "same in all items."
            )
        made.append(torch.cat(list(parts)) if spec.batched else parts[0])
    return made


def _parts(item: Any, takes: InputSpec) -> tuple[Sequence[Any] | None, Any]:
    """What may be the tensors, and what may be labels."""
    count = len(takes.tensors)
    labels: Any = None
    if isinstance(item, list | tuple) and len(item) in (1, 2) and isinstance(item[0], list | tuple | Mapping):
        item, labels = item[0], (item[1] if len(item) == 2 else None)
    if isinstance(item, Mapping):
        if any(name not in item for name in takes.names):
            return None, None
        found = next((item[name] for name in LABELS if name in item and name not in takes.names), labels)
        return [item[name] for name in takes.names], found
    if isinstance(item, Tensor):
        item = (item,)
    if takes.by_name or not isinstance(item, list | tuple) or len(item) not in (count, count + 1):
        return None, None
    return item[:count], (item[count] if len(item) > count else labels)


def _as_taken(tensor: Tensor, spec: TensorSpec, place: int) -> Tensor:
    """The tensor on the CPU in the type that the network takes."""
    said = f"`calibration` yields, at place {place}, for {spec.name}"
    dtype: torch.dtype = getattr(torch, spec.dtype)
    kinds = {(kind.is_floating_point, kind == torch.bool) for kind in (tensor.dtype, dtype)}
    if len(kinds) > 1:
        raise ImageFolderError(f"{said} a tensor of {tensor.dtype}; expected {dtype}, as the network takes it.")
    if not bool(tensor.isfinite().all()):
        raise ImageFolderError(f"{said} numbers that are NaN or infinite; expected finite ones.")
    return tensor.detach().to("cpu", dtype)


def _refused(place: int, item: Any, takes: InputSpec) -> ImageFolderError:
    if isinstance(item, Mapping):
        found = ", ".join(f"{name}: {said_of(value)}" for name, value in list(item.items())[:10]) or "an empty dict"
    elif isinstance(item, list | tuple):
        found = ", ".join(map(said_of, item[:10])) or "an empty tuple"
    else:
        found = said_of(item)
    form = "a dict by name" if takes.by_name else "a tuple" if len(takes.tensors) > 1 else "a tensor"
    return ImageFolderError(
        f"`calibration` yields, at place {place}, {found}; expected {form} of {takes}, or the same in a pair with "
        "labels."
    )


def is_single(labels: Any) -> bool:
    """Whether it is the label of one input."""
    return isinstance(labels, int) or (isinstance(labels, Tensor) and not labels.ndim)


def class_indices(labels: Any, count: int) -> Tensor | None:
    """Labels as class indices (B,), or None where they are something else."""
    if isinstance(labels, list | tuple) and all(isinstance(label, int | Tensor) for label in labels):
        labels = torch.tensor([int(label) for label in labels if not isinstance(label, Tensor) or label.numel() == 1])
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dtype == torch.bool:
        return None
    return labels.detach().to("cpu", torch.int64) if tuple(labels.shape) == (count,) else None


def said_of(value: Any) -> str:
    """A value for a message."""
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
