"""Calibration: real files in, batches spread over all of them; what cannot be read is met before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from pruneport.compress.activations.calibration import Batches, open_calibration
from pruneport.compress.options import CalibrationOptions
from pruneport.errors import ImageFolderError

SHAPE = (1, 8, 8)


def write(folder: Path, count: int = 40, classes: int = 0, step: int = 5) -> Path:
    for number in range(count):
        place = folder / f"class{number % classes}" if classes else folder
        place.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), number * step).save(
            place / (f"{number:02d}.png" if count < 100 else f"{number:03d}.png")
        )
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
    with pytest.raises(ImageFolderError, match=r"07\.png cannot be read .* with `skip_unreadable`"):
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
    with pytest.raises(ImageFolderError, match="`calibration_images` is 0"):
        open_calibration(options(tmp_path, calibration_images=0), SHAPE)


# Holding out


def seen(batches: Batches) -> list[int]:
    """Numbers of the images in the batches."""
    values = [round((float(value) + 1) / 2 * 255) for load in batches for value in load().mean((1, 2, 3))]
    return sorted(values)


def test_images_are_held_out_beside_those_that_were_asked_for(tmp_path: Path) -> None:
    """What is solved with stays what it was without a hold-out."""
    write(tmp_path, 250, step=1)
    given = options(tmp_path, calibration_images=200)
    plain, found = open_calibration(given, SHAPE), open_calibration(given, SHAPE, hold_out=True, seed=3)
    assert plain is not None
    assert found is not None
    assert plain.heldout == ()
    assert seen(plain.batches) == seen(found.batches)
    assert all(torch.equal(one(), two()) for one, two in zip(plain.batches, found.batches, strict=True))
    assert found.record == plain.record
    heldout = seen(found.heldout)
    assert len(heldout) == 20
    assert set(heldout).isdisjoint(seen(found.batches))
    assert all(any(start <= value < start + 50 for value in heldout) for start in range(0, 250, 50))


def test_the_seed_alone_chooses_what_is_held_out(tmp_path: Path) -> None:
    given = options(write(tmp_path, 120, step=2), calibration_images=60)
    one, same, other = (open_calibration(given, SHAPE, hold_out=True, seed=seed) for seed in (1, 1, 2))
    assert one is not None
    assert same is not None
    assert other is not None
    assert seen(one.heldout) == seen(same.heldout) != seen(other.heldout)


@pytest.mark.parametrize(
    ("count", "asked", "solving", "heldout"),
    [
        (250, 200, 200, 20),  # a tenth more, of the rest of the folder
        (250, 40, 40, 16),  # at least 16
        (210, 200, 189, 21),  # too few others: a tenth of all
        (100, 256, 84, 16),
        (32, 256, 16, 16),
        (31, 256, 31, 0),  # too few to spare any
        (40, 16, 16, 16),
        (31, 16, 16, 0),
        (1, 256, 1, 0),
    ],
)
def test_how_many_are_held_out(count: int, asked: int, solving: int, heldout: int, tmp_path: Path) -> None:
    found = open_calibration(options(write(tmp_path, count, step=1), calibration_images=asked), SHAPE, hold_out=True)
    assert found is not None
    assert (len(seen(found.batches)), len(seen(found.heldout))) == (solving, heldout)
    assert found.record.count == solving
    assert len(set(seen(found.batches) + seen(found.heldout))) == solving + heldout


def test_every_class_is_held_out_of(tmp_path: Path) -> None:
    write(tmp_path, 200, classes=8, step=1)
    found = open_calibration(options(tmp_path, calibration_images=160), SHAPE, hold_out=True)
    assert found is not None
    assert {value % 8 for value in seen(found.heldout)} == set(range(8))
    assert found.labels is not None
    labels = torch.cat(found.labels)
    values = torch.cat([((load().mean((1, 2, 3)) + 1) / 2 * 255).round() for load in found.batches])
    assert torch.equal(labels, values.long() % 8)


def test_images_that_cannot_be_read_are_not_held_out(tmp_path: Path) -> None:
    write(tmp_path, 100, step=2)
    given = options(tmp_path, calibration_images=50, skip_unreadable=True)
    found = open_calibration(given, SHAPE, hold_out=True)
    assert found is not None
    broken = tmp_path / f"{seen(found.heldout)[0] // 2:03d}.png"
    broken.write_bytes(b"no image")
    with pytest.raises(ImageFolderError, match=rf"{broken.name} cannot be read"):
        open_calibration(options(tmp_path, calibration_images=50), SHAPE, hold_out=True)
    found = open_calibration(given, SHAPE, hold_out=True)  # one too few outside: a tenth of all that are left
    assert found is not None
    assert found.record.skipped == (str(broken),)
    assert (len(seen(found.batches)), len(seen(found.heldout))) == (49, 16)


def test_batches_of_one(tmp_path: Path) -> None:
    found = open_calibration(options(write(tmp_path)), SHAPE, hold_out=True, batch=1)
    assert found is not None
    assert [len(load()) for load in found.batches] == [1] * 24
    assert [len(load()) for load in found.heldout] == [1] * 16
