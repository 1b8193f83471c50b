"""What the source of a network says of its preprocessing and its classes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Any, get_args

from torch import nn

from pruneport.errors import ImageFolderError
from pruneport.models.options import InterpolationName, PreparationOptions
from pruneport.models.preparation.resolve import resolve
from pruneport.models.record import Preprocessing, Source

__all__ = ["infer_class_names", "infer_preprocessing"]


def infer_preprocessing(source: Source, network: nn.Module) -> Preprocessing | None:
    """What the source's library documents, else ImageNet's; None of a network whose input is no image.

    A network with timm's ``pretrained_cfg`` says it, whoever built it. torchvision's weights say it: those that are
    named, those that the checkpoint is a copy of, else the network's DEFAULT.
    """
    if source.inputs is not None or (shape := source.image_shape)[0] not in (1, 3):
        return None
    known = None
    if isinstance(settings := getattr(network, "pretrained_cfg", None), Mapping):
        known = _of_timm(settings, shape)
    elif source.library == "torchvision":
        known = _of_torchvision(source)
    elif source.library == "pruneport":
        known = Preprocessing(
            resize=max(shape[1:]), interpolation="bilinear", mean=(0.5,), std=(0.5,), origin=source.spec
        )
    with contextlib.suppress(ImageFolderError):  # a library's numbers for other channels than the network's
        return resolve(PreparationOptions(), shape, known)
    return resolve(PreparationOptions(), shape)


def infer_class_names(source: Source, network: nn.Module) -> tuple[str, ...]:
    """Names from the metadata of the weights that the network has; none where these are not known."""
    names: Any = ()
    if source.library == "pruneport" and source.weights is not None:
        names = map(str, range(10))
    elif source.library == "torchvision":
        entry, certain = _torchvision_weights(source)
        names = entry.meta.get("categories", ()) if certain else ()
    elif source.library == "timm" and source.weights is not None:
        from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

        subset = infer_imagenet_subset(network)
        names = ImageNetInfo(subset).label_descriptions() if subset else ()
    return tuple(str(name) for name in names)


def _of_timm(settings: Mapping[str, Any], shape: tuple[int, int, int]) -> Preprocessing | None:
    """What ``pretrained_cfg`` says; of a crop mode that pads (``border``) the centre is cropped as of any other."""
    if not settings.get("mean") or not settings.get("std"):
        return None
    name = ".".join(str(settings[key]) for key in ("architecture", "tag") if settings.get(key))
    return Preprocessing(
        resize=math.floor(max(shape[1:]) / min(1.0, float(settings.get("crop_pct") or 1))),
        interpolation=_interpolation(settings.get("interpolation")),
        mean=tuple(float(number) for number in settings["mean"]),
        std=tuple(float(number) for number in settings["std"]),
        squash=settings.get("crop_mode") == "squash",
        origin=f"timm's {name}" if name else "timm's pretrained_cfg",
    )


def _of_torchvision(source: Source) -> Preprocessing | None:
    """The transforms of torchvision's weights; a detector's has none, since the network itself normalises."""
    entry, _ = _torchvision_weights(source)
    if entry is None:
        return None
    side = max(source.image_shape[1:])
    transforms = entry.transforms()
    crop, resize = (getattr(transforms, name, None) for name in ("crop_size", "resize_size"))
    mean, std = (getattr(transforms, name, default) for name, default in (("mean", (0.0,)), ("std", (1.0,))))
    ratio = resize[0] / crop[0] if crop and resize else 1
    return Preprocessing(
        resize=max(side, round(side * ratio)),
        interpolation=_interpolation(getattr(getattr(transforms, "interpolation", None), "value", None)),
        mean=tuple(mean),
        std=tuple(std),
        origin=f"torchvision's {entry}",
    )


def _torchvision_weights(source: Source) -> tuple[Any, bool]:
    """The entry that describes the weights, or None, and whether the network's weights are surely these.

    torchvision's files have the first eight digits of their sha256 in their names.
    """
    from torchvision import models

    entries = models.get_model_weights(source.spec.partition(":")[2])
    if source.weights is not None:
        return entries[source.weights], True
    digest = source.checkpoint_sha256
    same = [entry for entry in entries if digest and entry.url.rpartition("-")[2].partition(".")[0] == digest[:8]]
    if same:
        return same[0], True
    return (entries["DEFAULT"] if len(entries) else None), False


def _interpolation(name: object) -> InterpolationName:
    names = get_args(InterpolationName)
    found: InterpolationName = name if name in names else "bilinear"  # type: ignore[assignment]
    return found
