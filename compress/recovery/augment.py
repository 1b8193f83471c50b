"""Batches of images changed at random, so that a few images show a network more than themselves."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pruneport.models.inputs import ExampleInputs

__all__ = ["augmented"]

_SHIFT = 1 / 8  # of the side, at most


def augmented(inputs: ExampleInputs, seed: int) -> ExampleInputs:
    """Shift images and mirror half of them, as the seed says; other inputs stay as they are.

    A crop of the image's own size is taken up to an eighth of its side away; what lies beyond its edge is mirrored.

    Args:
        inputs: Images (B, C, H, W); another tensor, or several, are returned unchanged.
        seed: The same seed gives the same images.
    """
    if not isinstance(inputs, Tensor) or inputs.ndim != 4 or not inputs.is_floating_point():
        return inputs
    generator = torch.Generator().manual_seed(seed)
    down, right = (max(1, int(_SHIFT * size)) if size > 1 else 0 for size in inputs.shape[2:])
    padded = F.pad(inputs, (right, right, down, down), mode="reflect")
    shown = torch.empty_like(inputs)
    for place, image in enumerate(padded):
        y, x, mirrored = (int(torch.randint(end, (), generator=generator)) for end in (2 * down + 1, 2 * right + 1, 2))
        crop = image[:, y : y + inputs.shape[2], x : x + inputs.shape[3]]
        shown[place] = crop.flip(2) if mirrored else crop
    return shown
