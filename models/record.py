"""The record of a model source: everything needed to build the dense network again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from pruneport.documents import Path, Size
from pruneport.models.options import InterpolationName

__all__ = ["LIBRARIES", "Factory", "Preprocessing", "Scalar", "Source"]

Factory = Callable[..., nn.Module]
Scalar = bool | int | float | str | None

LIBRARIES = ("torchvision", "timm", "pruneport")
"""Sources whose code is installed beside ours; a bundle of any other source needs its owner's factory."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image becomes an input: resized, cropped from the centre to the input's size, normalised.

    Attributes:
        resize: Pixels of the shorter side, or of both where they are squashed.
        interpolation: How pixels are resized.
        mean: Of pixels in [0, 1], per channel; inputs are less it, over ``std``.
        std: See ``mean``.
        squash: Whether both sides are resized to the same length, whatever the image's shape.
        origin: Who says so, in words.
    """

    resize: Size
    interpolation: InterpolationName
    mean: tuple[float, ...]
    std: tuple[float, ...]
    squash: bool = False
    origin: str = ""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Everything needed to build the dense network again; the plan records it as JSON.

    Attributes:
        heads: Layers that were replaced for other classes: number of outputs by layer name.
        preprocessing: How images become its inputs; None where these are no images, and in plans from before it was
            recorded.
        class_names: In the order of the outputs; empty where they are not known.
    """

    spec: str
    model_args: dict[str, Scalar]
    input_shape: tuple[Size, Size, Size]
    seed: int = 0
    weights: str | None = None
    checkpoint: Path | None = None
    checkpoint_sha256: str | None = None
    heads: dict[str, Size] = field(default_factory=dict)
    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] = ()

    @property
    def library(self) -> str | None:
        """The library that holds the factory, or None for a factory of the user's own."""
        prefix = self.spec.partition(":")[0]
        return prefix if prefix in LIBRARIES else None

    @property
    def trained(self) -> bool:
        """Whether the weights come from a checkpoint or a weight name, not from an initialiser."""
        return self.checkpoint is not None or self.weights is not None
