"""The normalisation inside an ONNX file, so that the file takes images as they are and not a network's inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import get_args

import torch
from torch import Tensor, nn

from pruneport.errors import InputError, ModelError
from pruneport.export.options import EmbeddedName
from pruneport.models.preparation.resolve import is_guess
from pruneport.models.record import Preprocessing

__all__ = ["EMBEDDED", "Embedding", "embedded_name", "embedding_for", "height_width", "sizes_in_file"]

EMBEDDED = "embed_preprocessing"
"""The key in an ONNX file's metadata."""
_BYTES: EmbeddedName = "uint8-nhwc"
_LARGEST = 255  # of a pixel in uint8


class Embedding(nn.Module):
    """Makes inputs (B, C, H, W), less the mean and over the deviation, of images that are resized and cropped.

    Args:
        name: What the images are: ``uint8-nhwc``, (B, H, W, C) from 0 to 255, or ``float-nchw``, (B, C, H, W) from 0
            to 1.
        mean: Of each channel, of pixels in 0 to 1.
        std: See ``mean``.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: EmbeddedName, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.name = name
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(-1, 1, 1))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """The network's inputs."""
        if self._takes_bytes:
            images = _as_floats(images)
        return (images - self.mean) / self.std

    def images_of(self, pixels: Tensor) -> Tensor:
        """What the file takes, of pixels (B, H, W, C) in uint8."""
        return pixels if self._takes_bytes else _as_floats(pixels)

    def restored(self, inputs: Tensor) -> Tensor:
        """The images that inputs (B, C, H, W) were made of; what no image can be is taken to the nearest that can."""
        pixels = (inputs * self.std + self.mean).clamp(0, 1)
        if self._takes_bytes:
            return (pixels * _LARGEST).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        return pixels

    def random_images(self, batch: int, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
        """What the file takes, of uniform random pixels; ``shape`` is C, H, W."""
        sizes = (batch, *sizes_in_file(self.name, shape))
        if self._takes_bytes:
            return torch.randint(0, _LARGEST + 1, sizes, generator=generator, dtype=torch.uint8)
        return torch.rand(sizes, generator=generator)

    @property
    def left_outside(self) -> Mapping[str, bool]:
        """What of ``image_processor``'s steps is still to be done before the file takes images."""
        return {"rescale": not self._takes_bytes, "normalise": False}

    @property
    def _takes_bytes(self) -> bool:
        return self.name == _BYTES


def _as_floats(pixels: Tensor) -> Tensor:
    """Pixels (B, H, W, C) in uint8 as (B, C, H, W) from 0 to 1, which lie in memory so: some networks take views."""
    return pixels.permute(0, 3, 1, 2).contiguous().to(torch.float32) / _LARGEST


def sizes_in_file(name: EmbeddedName | None, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """C, H, W in the order that a file's input has them."""
    channels, height, width = shape
    return (height, width, channels) if name == _BYTES else shape


def height_width(name: EmbeddedName | None) -> tuple[int, int]:
    """Which dimensions of a file's input, of which the first is the batch, are height and width."""
    return (1, 2) if name == _BYTES else (2, 3)


def embedding_for(
    name: EmbeddedName | None, preprocessing: Preprocessing | None, shape: tuple[int, int, int] | None
) -> Embedding | None:
    """What stands before a network in its ONNX file; None where it takes normalised inputs.

    Args:
        name: What was asked for.
        preprocessing: Of the network's images, as far as it is known.
        shape: C, H, W of the network's input; None where it takes several inputs, or what is no image.

    Raises:
        InputError: The network takes no images, it is not known how these become its inputs, or what is said does not
            fit its channels.
    """
    if name is None:
        return None
    if shape is None:
        raise InputError(
            f"`{EMBEDDED}`: the network takes several inputs, or what is no image, and only one batch of images can be "
            "normalised in a file. Leave it out."
        )
    channels = shape[0]
    if preprocessing is None and channels not in (1, 3):
        raise InputError(f"`{EMBEDDED}`: the network takes {channels} channels; images have 1 or 3. Leave it out.")
    if preprocessing is None or is_guess(preprocessing):
        raise InputError(
            f"`{EMBEDDED}`: nothing is known of how images become the network's inputs, neither from its source nor "
            "from you. Give `mean` and `std`, of pixels in 0 to 1, where it is pruned, or leave it out."
        )
    mean, std = preprocessing.mean, preprocessing.std
    if len(mean) != channels or len(std) != channels:
        raise InputError(
            f"`{EMBEDDED}`: the plan has a mean of {len(mean)} and a deviation of {len(std)} numbers; expected "
            f"{channels} of each, as the input has channels. Prune again with `mean` and `std`."
        )
    if not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
        raise InputError(
            f"`{EMBEDDED}`: the plan has the mean {mean} and the deviation {std}; expected finite numbers, and "
            "deviations above 0. Prune again with `mean` and `std`."
        )
    return Embedding(name, mean, std)


def embedded_name(metadata: str | None) -> EmbeddedName | None:
    """What a file's metadata says under ``EMBEDDED``; None where that is not there.

    Raises:
        ModelError: It is none that this version knows.
    """
    names: tuple[EmbeddedName, ...] = get_args(EmbeddedName)
    if metadata is None:
        return None
    for name in names:
        if metadata == name:
            return name
    raise ModelError(
        f"an ONNX file says that it embeds its preprocessing as {metadata!r}; this version knows {', '.join(names)}. "
        "Export the bundle again, or use a newer pruneport."
    )
