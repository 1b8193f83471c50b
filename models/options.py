"""What a user says about where a network comes from and what images look like."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pruneport.errors import InputError

__all__ = [
    "PREPARATION",
    "AugmentName",
    "ImageOptions",
    "InterpolationName",
    "PreparationOptions",
    "SourceOptions",
    "given_of",
    "refuse_idle",
]

AugmentName = Literal["none", "crop", "crop-flip"]
InterpolationName = Literal["nearest", "bilinear", "bicubic", "lanczos"]


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Where the dense network comes from."""

    source: tyro.conf.Positional[str]
    """torchvision:NAME, timm:NAME, pruneport:NAME, package.module:factory or path/to/file.py:factory; timm also takes
    timm:hf-hub:OWNER/NAME and timm:local-dir:FOLDER."""
    checkpoint: Path | None = None
    """Weights: .pt/.pth/.th/.bin (read without running code) or .safetensors."""
    weights: str | None = None
    """A weight name that the library itself can download or carries, for example IMAGENET1K_V2."""
    model_arg: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """An argument for the factory as key=value; may be given several times."""
    class_names: Path | None = None
    """A text file with the names of the classes, one a line in the order of the outputs; default: those that the
    weights bring, else the folders of labelled `images`."""
    input_shape: tuple[int, int, int] | None = None
    """Input as C H W; needed for a factory of your own, else the library's default."""
    seed: int = 0
    """Seeds the initial weights where no checkpoint or weight name is given, and random scores."""


@dataclass(frozen=True, kw_only=True)
class PreparationOptions:
    """How images become inputs; what is not given is as the source of the network says, else ImageNet's."""

    resize: int | None = None
    """Shorter side in pixels before the centre crop to the input shape; default: as the source says, else the crop
    itself."""
    interpolation: InterpolationName | None = None
    """How pixels are resized; default: as the source says, else bilinear."""
    mean: tuple[float, ...] | None = None
    """Per-channel mean of pixels in [0, 1]; one number stands for every channel; default: as the source says, else
    ImageNet's."""
    std: tuple[float, ...] | None = None
    """Per-channel standard deviation of pixels in [0, 1]; one number stands for every channel; default: as the source
    says, else ImageNet's."""


PREPARATION = tuple(field.name for field in fields(PreparationOptions))
"""Names of the options that say how images become inputs."""


@dataclass(frozen=True, kw_only=True)
class ImageOptions(PreparationOptions):
    """A folder of images (one folder a class where labelled) and how they are prepared."""

    images: Path | None = None
    """Images for parity and accuracy: FOLDER/CLASS/*.png; classes in sorted order are the labels."""
    images_limit: int | None = None
    """Use at most this many images, taken evenly from the whole folder."""


def given_of(options: object, names: Iterable[str]) -> list[str]:
    """Those of the options that a user gave, which is to say that are not as by default, as messages name them."""
    return [f"`{name}`" for name in names if getattr(options, name) != getattr(type(options), name)]


def refuse_idle(options: object, names: Iterable[str], why: str, instead: str) -> None:
    """Refuse options that were given and that nothing would read.

    Args:
        options: Have all of the names.
        names: Of those that nothing reads, together with the others.
        why: What they are for, and what is missing.
        instead: What would let them be read.

    Raises:
        InputError: Names them.
    """
    if given := given_of(options, names):
        raise InputError(f"{', '.join(given)}: {why}. {instead}, or leave {', '.join(given)} out.")
