"""A task to train on: labelled images in two splits, and the batches that training sees.

Every batch follows from the seed and its number alone, so that a run that was stopped goes on with what it would have
seen.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode, v2

from pruneport.errors import ImageFolderError
from pruneport.models.images.image_files import check_name
from pruneport.models.images.images import ImageSet, list_folder
from pruneport.models.options import AugmentName, PreparationOptions
from pruneport.models.preparation.resolve import resolve
from pruneport.models.record import Preprocessing

__all__ = ["Pictures", "Task", "images_a_step", "mix", "open_task", "test_batches", "train_batches"]

_TESTS = ("test", "val", "validation")
_SCALE = (0.5, 1.0)  # share of the area that a random crop takes
_HELD_PIXELS = 2**28  # of decoded images kept in memory at most, four bytes each
_TEST_BATCH = 100


@dataclass(frozen=True, kw_only=True)
class Task:
    """Labelled images of the same classes: ``train`` to learn from, ``test`` to measure on."""

    name: str
    train: ImageSet
    test: ImageSet

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the outputs."""
        return self.train.classes


def open_task(
    folder: Path, options: PreparationOptions, shape: tuple[int, int, int], known: Preprocessing | None = None
) -> Task:
    """List both splits, and decode every image once, so that an unreadable one is met before any work.

    Args:
        folder: Holds ``train/CLASS/IMAGE`` and ``test/CLASS/IMAGE`` (or ``val``).
        options: How images become inputs.
        shape: C, H, W of the input.
        known: What the network's source or plan says of their preparation; the options have the last word.

    Raises:
        ImageFolderError: A split is missing, empty or unlabelled, there are fewer than two classes, the splits'
            classes differ, or an image cannot be read.
    """
    if not folder.is_dir():
        raise ImageFolderError(
            f"no task folder {folder}; expected FOLDER/train/CLASS/IMAGE and FOLDER/test/CLASS/IMAGE."
        )
    place = Path(os.path.realpath(folder))
    check_name(place)
    held_out = next((name for name in _TESTS if (folder / name).is_dir()), None)
    if not (folder / "train").is_dir() or held_out is None:
        raise ImageFolderError(
            f"{folder} is no task: it needs the folders train and {_TESTS[0]} (or {' or '.join(_TESTS[1:])}), each "
            "with one folder of images a class."
        )
    preprocessing = resolve(options, shape, known)
    train, test = (_split(folder / name, preprocessing, shape) for name in ("train", held_out))
    if train.classes != test.classes:
        lacking = sorted(set(train.classes).symmetric_difference(test.classes))
        raise ImageFolderError(
            f"{folder}: the classes of train and {held_out} differ ({', '.join(lacking)} in one only); "
            "give both the same class folders."
        )
    if len(train.classes) < 2:
        raise ImageFolderError(f"{folder} has one class, {train.classes[0]}; expected at least two to tell apart.")
    return Task(name=place.name, train=train, test=test)


def _split(folder: Path, preprocessing: Preprocessing, shape: tuple[int, int, int]) -> ImageSet:
    """Labelled images of one folder, all of them readable, and some of every class."""
    found = list_folder(folder, shape, preprocessing)
    if found.labels is None:
        raise ImageFolderError(f"{folder} has no class folders; expected {folder}/CLASS/IMAGE.")
    empty = [name for index, name in enumerate(found.classes) if index not in set(found.labels)]
    if empty:
        raise ImageFolderError(f"{folder}: no images of {', '.join(empty)}; add some, or remove the folder.")
    found.check_readable()
    return found


class Pictures(Dataset[tuple[Tensor, int]]):
    """Inputs and labels by row and seed; shrunk images are kept in memory while there is room.

    Args:
        images: One split.
        augment: What is done to each image: ``crop`` takes a part of random size and place, ``crop-flip`` also mirrors
            half of them.
    """

    def __init__(self, images: ImageSet, augment: AugmentName = "none") -> None:
        self.images = images
        _, height, width = images.shape
        how = InterpolationMode(images.preprocessing.interpolation)
        crop = v2.RandomResizedCrop((height, width), _SCALE, interpolation=how)
        steps: dict[AugmentName, list[v2.Transform]] = {
            "none": [],
            "crop": [crop],
            "crop-flip": [crop, v2.RandomHorizontalFlip()],
        }
        self._augment = v2.Compose(steps[augment]) if steps[augment] else None
        self._held = images.held
        self._room = _HELD_PIXELS - sum(image.width * image.height for image in self._held.values())

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        """The row's input (C, H, W), augmented as the seed says, and its label."""
        row, seed = key
        path = self.images.paths[row]
        image = self._held.get(path)
        if image is None:
            image = self.images.shrunk(path)
            if (pixels := image.width * image.height) <= self._room:
                self._held[path] = image
                self._room -= pixels
        if self._augment is None:
            image = self.images.centre(image)
        else:
            with torch.random.fork_rng(devices=[]):
                # torch.manual_seed would ask every kind of device, for a millisecond each time.
                torch.default_generator.manual_seed(seed)
                image = self._augment(image)
        assert self.images.labels is not None
        return self.images.normalised(image), self.images.labels[row]


def train_batches(
    pictures: Pictures, batch: int, seed: int, start: int = 0, rank: int = 0, ranks: int = 1, workers: int = 0
) -> DataLoader[tuple[Tensor, int]]:
    """Inputs (B, C, H, W) and labels (B,) for ever, each epoch in another order.

    Args:
        pictures: The training split.
        batch: Images a step over all processes, see ``images_a_step``; those that fill no batch are left out.
        seed: Orders and augments.
        start: The step to begin with.
        rank: Which process this is; each takes its share of every batch.
        ranks: How many there are.
        workers: Processes that decode; 0 decodes here.
    """
    size = images_a_step(pictures.images, batch)
    steps = (_rows(len(pictures.images), size, seed, step)[rank::ranks] for step in itertools.count(start))
    return DataLoader(pictures, batch_sampler=steps, num_workers=workers)


def test_batches(pictures: Pictures) -> DataLoader[tuple[Tensor, int]]:
    """Every image of a split once, in order."""
    rows = [(row, 0) for row in range(len(pictures.images))]
    return DataLoader(pictures, batch_sampler=[rows[i : i + _TEST_BATCH] for i in range(0, len(rows), _TEST_BATCH)])


def images_a_step(images: ImageSet, batch: int) -> int:
    """A batch is never larger than its split."""
    return min(batch, len(images))


def _rows(count: int, size: int, seed: int, step: int) -> list[tuple[int, int]]:
    epoch, place = divmod(step, count // size)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(mix(seed, epoch))).tolist()
    return [(row, mix(seed, step, row)) for row in order[place * size : (place + 1) * size]]


def mix(*numbers: int) -> int:
    """A seed that is another one for any other numbers."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1
