"""Image folders: found, checked and prepared for a network.

The inputs are those of torchvision's transforms. They are made here because torchvision takes seconds to import, and
because its scaling to [0, 1] multiplies by 1 / 255, where the usual ``ToTensor`` divides by 255: other last bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pruneport.arrays import AnyArray
from pruneport.errors import ImageFolderError
from pruneport.models.images.image_files import PIXELS, decode, find_images
from pruneport.models.options import ImageOptions
from pruneport.models.preparation.resolve import resolve
from pruneport.models.record import Preprocessing
from pruneport.sequences import evenly

__all__ = ["ImageSet", "list_folder", "open_images"]


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Images on disk, with how they become network inputs.

    Attributes:
        folder: Where they lie.
        paths: One file an image.
        labels: Index of each image's class in sorted order, or None for a flat, unlabelled folder.
        classes: Folder names in sorted order; empty where unlabelled.
        shape: C, H, W of the network's input.
        preprocessing: How they are resized and normalised.
        held: Shrunk images that training has read, kept from one epoch, or one training, to the next.
    """

    folder: Path
    paths: tuple[Path, ...]
    labels: tuple[int, ...] | None
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    preprocessing: Preprocessing
    held: dict[Path, Image.Image] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.paths)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield inputs (B, C, H, W) in float32 and labels (B,), in a fixed order.

        Raises:
            ImageFolderError: An image cannot be decoded; the message names it.
        """
        for pixels, labels in self.pixel_batches(size):
            yield self.normalised_batch(pixels), labels

    def pixel_batches(self, size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The same before they are normalised: images (B, H, W, C) in uint8, in the size of the input.

        Raises:
            ImageFolderError: An image cannot be decoded; the message names it.
        """
        channels, height, width = self.shape
        for start in range(0, len(self.paths), size):
            images = [self.centre(self.shrunk(path)) for path in self.paths[start : start + size]]
            arrays = [np.array(image, dtype=np.uint8).reshape(height, width, channels) for image in images]
            labels = None if self.labels is None else torch.tensor(self.labels[start : start + size])
            yield torch.from_numpy(np.stack(arrays)), labels

    def spread(self, size: int) -> list[ImageSet]:
        """Parts of at most ``size`` images, each taken evenly from the whole set."""
        count = -(-len(self) // size)
        return [self.part(range(start, len(self), count)) for start in range(count)]

    def unreadable(self) -> dict[int, str]:
        """Row and message of every image that cannot be decoded."""
        found = {}
        for row, path in enumerate(self.paths):
            try:
                self._decode(path)
            except ImageFolderError as error:
                found[row] = str(error)
        return found

    def check_readable(self) -> None:
        """Decode every image once.

        Raises:
            ImageFolderError: Names the first three that cannot be decoded, and how many more there are.
        """
        if unreadable := self.unreadable():
            shown = list(unreadable.values())
            more = f" And {len(shown) - 3} more." if len(shown) > 3 else ""
            raise ImageFolderError(" ".join(shown[:3]) + more)

    def part(self, rows: Sequence[int]) -> ImageSet:
        """The images at the given rows."""
        labels = None if self.labels is None else tuple(self.labels[row] for row in rows)
        return replace(self, paths=tuple(self.paths[row] for row in rows), labels=labels)

    def _decode(self, path: Path) -> Image.Image:
        """Read an image, if it will not be too large after resizing."""
        image = decode(path, "L" if self.shape[0] == 1 else "RGB")
        width, height = self._shrunk_size(image)
        if width * height > PIXELS:
            raise ImageFolderError(
                f"image {path} of {image.width} x {image.height} pixels would have {width} x {height} with a shorter "
                f"side of {self.preprocessing.resize}; remove it from {path.parent} or cut it."
            )
        return image

    def _shrunk_size(self, image: Image.Image) -> tuple[int, int]:
        # torchvision's Resize: the longer side is cut down to a whole number.
        side, shorter = self.preprocessing.resize, min(image.size)
        if self.preprocessing.squash:
            return side, side
        return side * image.width // shorter, side * image.height // shorter

    def shrunk(self, path: Path) -> Image.Image:
        """The image with its shorter side, or both, at as many pixels as the preprocessing says.

        Raises:
            ImageFolderError: It cannot be decoded; the message names it.
        """
        image = self._decode(path)
        size = self._shrunk_size(image)
        if image.size == size:
            return image
        return image.resize(size, Image.Resampling[self.preprocessing.interpolation.upper()])

    def centre(self, image: Image.Image) -> Image.Image:
        """The middle of a shrunk image, in the size of the input."""
        _, height, width = self.shape
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        return image.crop((left, top, left + width, top + height))

    def normalised_batch(self, pixels: Tensor) -> Tensor:
        """Images (B, H, W, C) in uint8 as inputs (B, C, H, W)."""
        normalised = self._scaled(pixels.numpy())
        return torch.from_numpy(np.ascontiguousarray(normalised.transpose(0, 3, 1, 2)))

    def normalised(self, image: Image.Image | AnyArray) -> Tensor:
        """An image in the size of the input as a tensor (C, H, W), less the mean, over the deviation."""
        channels, height, width = self.shape
        normalised = self._scaled(np.asarray(image).reshape(height, width, channels))
        return torch.from_numpy(np.ascontiguousarray(normalised.transpose(2, 0, 1)))

    def _scaled(self, pixels: AnyArray) -> AnyArray:
        """Pixels (..., C) from 0 to 255, less the mean, over the deviation."""
        mean, std = (np.asarray(part, np.float32) for part in (self.preprocessing.mean, self.preprocessing.std))
        scaled = pixels.astype(np.float32)
        scaled /= np.float32(255)
        scaled -= mean
        scaled /= std
        return scaled


def open_images(
    options: ImageOptions, shape: tuple[int, int, int], known: Preprocessing | None = None
) -> ImageSet | None:
    """List the images that the options name; None where they name none.

    Args:
        options: The folder and how its images are prepared.
        shape: C, H, W of the network's input.
        known: What the network's source or plan says of their preparation; the options have the last word.

    Raises:
        ImageFolderError: No such folder, no images in it, or a preparation that does not fit the input.
    """
    if options.images is None:
        return None
    preprocessing = resolve(options, shape, known)
    return list_folder(options.images, shape, preprocessing, options.images_limit)


def list_folder(
    folder: Path, shape: tuple[int, int, int], preprocessing: Preprocessing, limit: int | None = None
) -> ImageSet:
    """List the images of a folder, or at most ``limit`` of them, taken evenly.

    Raises:
        ImageFolderError: No such folder, no images in it, or loose ones beside class folders.
    """
    classes, found = find_images(folder)
    if limit is not None and limit < 1:
        raise ImageFolderError(f"`images_limit` is {limit}; expected at least 1.")
    count = min(limit or len(found), len(found))
    paths = tuple(evenly(found, count))
    labels = None
    if classes:
        index = {name: position for position, name in enumerate(classes)}
        if stray := [path.name for path in found if path.parent == folder]:
            raise ImageFolderError(
                f"{folder} mixes class folders and loose images ({stray[0]}, …); use one or the other."
            )
        labels = tuple(index[path.relative_to(folder).parts[0]] for path in paths)
    return ImageSet(
        folder=folder,
        paths=paths,
        labels=labels,
        classes=tuple(classes),
        shape=shape,
        preprocessing=preprocessing,
    )
