"""What a user says about where a network comes from and what images look like."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

__all__ = ["AugmentName", "ImageOptions", "InterpolationName", "PreparationOptions", "SourceOptions"]

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


@dataclass(frozen=True, kw_only=True)
class ImageOptions(PreparationOptions):
    """A folder of images (one folder a class where labelled) and how they are prepared."""

    images: Path | None = None
    """Images for parity and accuracy: FOLDER/CLASS/*.png; classes in sorted order are the labels."""
    images_limit: int | None = None
    """Use at most this many images, taken evenly from the whole folder."""
