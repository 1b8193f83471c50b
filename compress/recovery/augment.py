"""Images changed, so that a few of them show a network more than themselves: mirrored, or at random."""

from __future__ import annotations

import math
from typing import TypeGuard

import torch
from torch import Tensor
from torch.nn import functional as F

from pruneport.compress.activations.calibration import Batches
from pruneport.models.inputs import ExampleInputs

__all__ = ["augmented", "mirror_images"]

_SHIFT = 1 / 8  # of the side, at most
_LARGE = 96  # pixels a side: what is smaller shows too little when a part of it is enlarged
_LEAST_AREA = 0.35  # of an image that is enlarged
_ASPECT = 4 / 3


def mirror_images(batches: Batches, example: ExampleInputs) -> Batches:
    """The same images, left and right exchanged; none where the inputs, such as the example, are no images."""
    if not _are_images(example):
        return ()
    return [lambda load=load: load().flip(3) for load in batches]  # type: ignore[misc]


def augmented(inputs: ExampleInputs, seed: int, mixed: float = 0.0) -> ExampleInputs:
    """Crop images, mirror half of them and mix some with others, as the seed says; other inputs stay as they are.

    Of images of 96 pixels a side or more a part of 35 % of the area or more, up to 4/3 as wide as high or the other way
    round, is enlarged to their size. Smaller ones are shifted by up to an eighth of their side; what lies beyond their
    edge is mirrored. Mixing is with another image of the batch: half the time a weighted mean (Zhang et al. 2018, arXiv
    1710.09412), half the time a rectangle of it (Yun et al. 2019, arXiv 1905.04899); the weight, or the rectangle's
    area, is uniform.

    Args:
        inputs: Images (B, C, H, W); another tensor, or several, are returned unchanged.
        seed: The same seed gives the same images.
        mixed: Share of the images that are mixed.
    """
    if not _are_images(inputs):
        return inputs
    generator = torch.Generator().manual_seed(seed)
    count, _, height, width = inputs.shape
    shown = (_enlarged if min(height, width) >= _LARGE else _shifted)(inputs, generator)
    if mixed:
        own = _own_share(count, height, width, mixed, generator).to(inputs)
        other = torch.randperm(count, generator=generator).to(inputs.device)
        shown = own * shown + (1 - own) * shown[other]
    return shown


def _are_images(inputs: ExampleInputs) -> TypeGuard[Tensor]:
    """Whether it is one tensor (B, C, H, W) of numbers."""
    return isinstance(inputs, Tensor) and inputs.ndim == 4 and inputs.is_floating_point()


def _enlarged(images: Tensor, generator: torch.Generator) -> Tensor:
    """A random part of each, half of them mirrored, as large as the whole."""
    share, bend, right, down, flip = torch.rand(5, len(images), generator=generator)
    area, aspect = _LEAST_AREA + (1 - _LEAST_AREA) * share, torch.exp((2 * bend - 1) * math.log(_ASPECT))
    width, height = (area * aspect).sqrt().clamp_max(1), (area / aspect).sqrt().clamp_max(1)
    none, mirrored = torch.zeros(len(images)), torch.where(flip < 0.5, -width, width)
    rows = [(mirrored, none, (2 * right - 1) * (1 - width)), (none, height, (2 * down - 1) * (1 - height))]
    taken_from = torch.stack([torch.stack(row, 1) for row in rows], 1).to(images)
    places = F.affine_grid(taken_from, list(images.shape), align_corners=False)
    return F.grid_sample(images, places, padding_mode="border", align_corners=False)


def _shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each moved to a side and up or down, half of them mirrored."""
    count, _, height, width = images.shape
    rows, columns = (_moved(count, size, generator) for size in (height, width))
    mirrored = torch.randint(2, (count, 1), generator=generator).bool()
    columns = torch.where(mirrored, columns.flip(1), columns)
    places = torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]
    image, row, column = (place.to(images.device) for place in places)
    return images[image, :, row, column].movedim(-1, 1)


def _moved(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Where each place of each moved image is taken from: (count, size)."""
    most = max(1, int(_SHIFT * size)) if size > 1 else 0
    places = torch.arange(size) + torch.randint(-most, most + 1, (count, 1), generator=generator)
    return size - 1 - (size - 1 - places.abs()).abs()


def _own_share(count: int, height: int, width: int, mixed: float, generator: torch.Generator) -> Tensor:
    """How much of each place is an image's own: (count, 1, height, width)."""
    chosen, cut, weight, down, right = torch.rand(5, count, 1, 1, 1, generator=generator)
    side = (1 - weight).sqrt()  # of the rectangle, relative to the image's
    inside = [
        (place - start * (1 - side) * size >= 0) & (place - start * (1 - side) * size < side * size)
        for place, start, size in (
            (torch.arange(height).reshape(-1, 1), down, height),
            (torch.arange(width).reshape(1, -1), right, width),
        )
    ]
    share = torch.where(cut < 0.5, weight.expand(-1, -1, height, width), 1 - (inside[0] & inside[1]).float())
    return torch.where(chosen < mixed, share, 1.0)
