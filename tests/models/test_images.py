"""Image folders: what is found, and inputs equal to torchvision's own preparation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms as transforms
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pruneport.errors import ImageFolderError
from pruneport.models.images import ImageSet, open_images
from pruneport.models.options import ImageOptions

PLAIN = {"mean": (0.0,), "std": (1.0,)}


def picture(width: int, height: int, channels: int = 3, seed: int = 0) -> Image.Image:
    generator = np.random.default_rng(seed)
    shape = (height, width) if channels == 1 else (height, width, channels)
    return Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8))


def flat_folder(folder: Path, count: int, size: int = 8) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("L", (size, size), number).save(folder / f"{number:03d}.png")
    return folder


def opened(folder: Path, shape: tuple[int, int, int] = (1, 8, 8), **fields: object) -> ImageSet:
    images = open_images(ImageOptions(images=folder, **(PLAIN | fields)), shape)  # type: ignore[arg-type]
    assert images is not None
    return images


def inputs_of(images: ImageSet) -> torch.Tensor:
    return torch.cat([inputs for inputs, _ in images.batches(3)])


# What is found


def test_no_folder_named_gives_none() -> None:
    assert open_images(ImageOptions(), (3, 8, 8)) is None


def test_a_flat_folder_is_unlabelled(tmp_path: Path) -> None:
    images = opened(flat_folder(tmp_path, 5))
    (tmp_path / "notes.txt").write_text("no image")
    assert len(images) == 5
    assert images.labels is None
    assert images.classes == ()
    batches = list(images.batches(2))
    assert [inputs.shape for inputs, _ in batches] == [(2, 1, 8, 8), (2, 1, 8, 8), (1, 1, 8, 8)]
    assert all(labels is None for _, labels in batches)
    assert (inputs_of(images)[:, 0, 0, 0] * 255).round().tolist() == [0, 1, 2, 3, 4]


def test_class_folders_are_labels_in_sorted_order(tmp_path: Path) -> None:
    for name, count in (("zebra", 2), ("ant", 1), ("10", 3)):
        flat_folder(tmp_path / name, count)
    flat_folder(tmp_path / "zebra" / "deeper", 1)
    images = opened(tmp_path)
    assert images.classes == ("10", "ant", "zebra")
    assert images.labels == (0, 0, 0, 1, 2, 2, 2)
    labels = torch.cat([labels for _, labels in images.batches(4) if labels is not None])
    assert labels.tolist() == [0, 0, 0, 1, 2, 2, 2]
    assert labels.dtype == torch.int64
    assert [path.relative_to(tmp_path).parts[0] for path in images.paths] == ["10"] * 3 + ["ant"] + ["zebra"] * 3


@pytest.mark.parametrize("suffix", [".png", ".JPG", ".jpeg", ".bmp", ".webp", ".ppm", ".tiff"])
def test_image_suffixes(suffix: str, tmp_path: Path) -> None:
    picture(8, 8).save(tmp_path / f"image{suffix}")
    assert inputs_of(opened(tmp_path, (3, 8, 8))).shape == (1, 3, 8, 8)


def test_a_limit_takes_images_evenly(tmp_path: Path) -> None:
    flat_folder(tmp_path, 10)

    def numbers(limit: int | None) -> list[int]:
        return [int(path.stem) for path in opened(tmp_path, images_limit=limit).paths]

    assert numbers(5) == [0, 2, 4, 6, 8]
    assert numbers(10) == numbers(99) == numbers(None) == list(range(10))
    for limit in range(1, 10):
        chosen = numbers(limit)
        assert len(set(chosen)) == limit
        gaps = np.diff([*chosen, 10 + chosen[0]])
        assert gaps.max() - gaps.min() <= 1
    with pytest.raises(ImageFolderError, match="--images-limit is 0; expected at least 1"):
        opened(tmp_path, images_limit=0)


def test_a_limit_reaches_every_class(tmp_path: Path) -> None:
    for name in "abcd":
        flat_folder(tmp_path / name, 6)
    assert opened(tmp_path, images_limit=4).labels == (0, 1, 2, 3)


# How images become inputs


@given(
    width=st.integers(5, 70),
    height=st.integers(5, 70),
    resize=st.integers(16, 40),
    crop=st.tuples(st.integers(5, 16), st.integers(5, 16)),
    channels=st.sampled_from([1, 3]),
    stored=st.sampled_from([1, 3]),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_inputs_equal_torchvisions(
    tmp_path_factory: pytest.TempPathFactory,
    width: int,
    height: int,
    resize: int,
    crop: tuple[int, int],
    channels: int,
    stored: int,
) -> None:
    folder = tmp_path_factory.mktemp("images")
    image = picture(width, height, stored, seed=width * height)
    image.save(folder / "image.png")
    mean, std = (0.4, 0.3, 0.2)[:channels], (0.5, 0.25, 0.125)[:channels]
    expected = transforms.Compose(
        [
            transforms.Grayscale(channels) if channels == 1 else transforms.Lambda(lambda i: i.convert("RGB")),
            transforms.Resize(resize),
            transforms.CenterCrop(crop),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )(image)
    actual = inputs_of(opened(folder, (channels, *crop), resize=resize, mean=mean, std=std))[0]
    assert actual.dtype == torch.float32
    assert actual.is_contiguous()
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def test_without_resize_the_shorter_side_is_the_crop(tmp_path: Path) -> None:
    image = picture(50, 30)
    image.save(tmp_path / "image.png")
    prepare = transforms.Compose([transforms.Resize(16), transforms.CenterCrop((16, 16)), transforms.ToTensor()])
    torch.testing.assert_close(inputs_of(opened(tmp_path, (3, 16, 16)))[0], prepare(image), rtol=0, atol=1e-5)


def test_one_number_stands_for_every_channel(tmp_path: Path) -> None:
    picture(8, 8).save(tmp_path / "image.png")
    one = inputs_of(opened(tmp_path, (3, 8, 8), mean=(0.5,), std=(0.25,)))
    three = inputs_of(opened(tmp_path, (3, 8, 8), mean=(0.5,) * 3, std=(0.25,) * 3))
    assert torch.equal(one, three)


def test_default_normalisation_of_grey_images_is_the_channel_mean(tmp_path: Path) -> None:
    Image.new("L", (8, 8), 100).save(tmp_path / "grey.png")
    images = open_images(ImageOptions(images=tmp_path), (1, 8, 8))
    assert images is not None
    expected = (100 / 255 - (0.485 + 0.456 + 0.406) / 3) / ((0.229 + 0.224 + 0.225) / 3)
    assert inputs_of(images)[0, 0, 0, 0].item() == pytest.approx(expected, abs=1e-5)


def test_transparency_and_palettes(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (10, 20, 30, 0)).save(tmp_path / "a.png")
    Image.new("RGB", (8, 8), (10, 20, 30)).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "b.png")
    inputs = inputs_of(opened(tmp_path, (3, 8, 8))) * 255
    assert inputs[:, :, 4, 4].round().tolist() == [[10, 20, 30], [10, 20, 30]]


# Faults


def test_a_corrupt_image_is_named(tmp_path: Path) -> None:
    flat_folder(tmp_path, 2, size=64)
    (tmp_path / "noise.png").write_bytes(b"this is no image")
    with pytest.raises(ImageFolderError, match=rf"image {tmp_path}/noise\.png cannot be read .*remove it from"):
        inputs_of(opened(tmp_path))
    (tmp_path / "noise.png").unlink()
    picture(64, 64).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:900])
    with pytest.raises(ImageFolderError, match=r"cut\.jpg cannot be read \(.*truncated.*\)"):
        inputs_of(opened(tmp_path))


def test_pixels_of_16_bits_are_refused_rather_than_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 300, dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ImageFolderError, match=r"deep\.png has more than 8 bits a channel \(mode I;16\)"):
        inputs_of(opened(tmp_path))


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(ImageFolderError, match=r"no image folder .*gone; expected FOLDER/CLASS/IMAGE"):
        opened(tmp_path / "gone")
    (tmp_path / "file.png").touch()
    with pytest.raises(ImageFolderError, match=r"no image folder .*file\.png"):
        opened(tmp_path / "file.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").touch()
    with pytest.raises(ImageFolderError, match=r"no images in .*empty; expected files ending in \.bmp, "):
        opened(tmp_path / "empty")


@pytest.mark.parametrize("limit", [None, 2])
def test_loose_images_beside_class_folders(limit: int | None, tmp_path: Path) -> None:
    flat_folder(tmp_path / "cat", 4)
    picture(8, 8).save(tmp_path / "loose.png")
    with pytest.raises(ImageFolderError, match=r"mixes class folders and loose images \(loose\.png, …\)"):
        opened(tmp_path, images_limit=limit)


@pytest.mark.parametrize("name", ["mean", "std"])
@pytest.mark.parametrize(("channels", "count"), [(3, 2), (3, 4), (1, 3), (3, 0)])
def test_means_of_the_wrong_length(name: str, channels: int, count: int, tmp_path: Path) -> None:
    flat_folder(tmp_path, 1)
    with pytest.raises(ImageFolderError, match=f"--{name} has {count} numbers; expected 1 or {channels}"):
        opened(tmp_path, (channels, 8, 8), **{name: (0.5,) * count})


def test_resize_below_the_input(tmp_path: Path) -> None:
    flat_folder(tmp_path, 1)
    with pytest.raises(ImageFolderError, match="--resize 7 is smaller than the input of 8 x 6 pixels"):
        opened(tmp_path, (1, 8, 6), resize=7)


@pytest.mark.parametrize("channels", [2, 4])
def test_channels_that_no_image_has(channels: int, tmp_path: Path) -> None:
    flat_folder(tmp_path, 1)
    with pytest.raises(ImageFolderError, match=f"the network takes {channels} channels; image files give 1 or 3"):
        opened(tmp_path, (channels, 8, 8))


def test_a_deviation_of_zero_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageFolderError, match=r"--std is \(0\.0,\); expected numbers above 0"):
        opened(flat_folder(tmp_path, 1), std=(0.0,))
