"""Preprocessing in the form that Hugging Face's image processors read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pruneport.models.options import InterpolationName
from pruneport.models.record import Preprocessing, Source

__all__ = ["image_processor", "preparation_metadata"]

_RESAMPLE: Mapping[InterpolationName, int] = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}  # Pillow's


def image_processor(
    preprocessing: Preprocessing,
    shape: tuple[int, int, int],
    class_names: Sequence[str] = (),
    *,
    rescale: bool = True,
    normalise: bool = True,
) -> dict[str, Any]:
    """The content of preprocessor.json: ``CLIPImageProcessor`` resizes, crops, rescales and normalises in this order.

    Args:
        preprocessing: How images become inputs.
        shape: C, H, W of the input.
        class_names: In the order of the outputs; they stand under ``id2label``.
        rescale: Whether pixels up to 255 are still to be divided by it, to lie in [0, 1].
        normalise: Whether the mean and the deviation are still to be taken out.
    """
    channels, height, width = shape
    side = preprocessing.resize
    content: dict[str, Any] = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": channels == 3,
        "do_resize": True,
        "size": {"height": side, "width": side} if preprocessing.squash else {"shortest_edge": side},
        "resample": _RESAMPLE[preprocessing.interpolation],
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": rescale,
        "rescale_factor": 1 / 255,
        "do_normalize": normalise,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }
    if class_names:
        content["id2label"] = {str(place): name for place, name in enumerate(class_names)}
    return content


def preparation_metadata(source: Source, *, rescale: bool = True, normalise: bool = True) -> dict[str, str]:
    """What an ONNX file says of its images and classes, as far as it is known: JSON by name."""
    said = {}
    if source.preprocessing is not None:
        said["preprocessing"] = json.dumps(
            image_processor(source.preprocessing, source.image_shape, rescale=rescale, normalise=normalise)
        )
    if source.class_names:
        said["class_names"] = json.dumps(source.class_names)
    return said
