"""Calibration: real files in, batches spread over all of them; what cannot be read is met before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from pruneport.compress.calibration import open_calibration
from pruneport.compress.options import CalibrationOptions
from pruneport.errors import ImageFolderError

SHAPE = (1, 8, 8)


def write(folder: Path, count: int = 40, classes: int = 0) -> Path:
    for number in range(count):
        place = folder / f"class{number % classes}" if classes else folder
        place.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), number * 5).save(place / f"{number:02d}.png")
    return folder


def options(folder: Path, **changes: object) -> CalibrationOptions:
    given = {"calibration": folder, "mean": (0.5,), "std": (0.5,), **changes}
    return CalibrationOptions(**given)  # type: ignore[arg-type]


def test_every_batch_is_spread_over_the_folder(tmp_path: Path) -> None:
    found = open_calibration(options(write(tmp_path)), SHAPE)
    assert found is not None
    assert [len(load()) for load in found.batches] == [20, 20]
    assert torch.equal(found.batches[0](), found.batches[0]())
    values = [sorted({round((float(v) + 1) / 2 * 255) // 5 for v in load().mean((1, 2, 3))}) for load in found.batches]
    assert values == [list(range(0, 40, 2)), list(range(1, 40, 2))]
    assert found.labels is None
    assert (found.record.inputs, found.record.count, found.record.skipped) == ("images", 40, ())


def test_class_folders_give_labels(tmp_path: Path) -> None:
    found = open_calibration(options(write(tmp_path, classes=4)), SHAPE)
    assert found is not None
    assert found.labels is not None
    assert found.classes == 4
    assert sorted(torch.cat(found.labels).tolist()) == sorted([0, 1, 2, 3] * 10)


def test_images_that_cannot_be_read_are_named_and_left_out_only_when_asked(tmp_path: Path) -> None:
    write(tmp_path)
    broken = tmp_path / "07.png"
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(ImageFolderError, match=r"07\.png cannot be read .* with --skip-unreadable"):
        open_calibration(options(tmp_path), SHAPE)
    found = open_calibration(options(tmp_path, skip_unreadable=True), SHAPE)
    assert found is not None
    assert sum(len(load()) for load in found.batches) == found.record.count == 39
    assert found.record.skipped == (str(broken),)


def test_a_folder_of_nothing_but_broken_images(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("not an image")
    with pytest.raises(ImageFolderError, match="none of the 1 images"):
        open_calibration(options(tmp_path, skip_unreadable=True), SHAPE)


def test_no_folder_and_wrong_numbers(tmp_path: Path) -> None:
    assert open_calibration(CalibrationOptions(), SHAPE) is None
    with pytest.raises(ImageFolderError, match="no image folder"):
        open_calibration(options(tmp_path / "gone"), SHAPE)
    with pytest.raises(ImageFolderError, match="--calibration-images is 0"):
        open_calibration(options(tmp_path, calibration_images=0), SHAPE)
