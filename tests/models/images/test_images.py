"""Image folders: what is found, and inputs equal to torchvision's own preparation."""

from __future__ import annotations

import io
import os
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torchvision.transforms import v2

from pruneport.errors import ImageFolderError
from pruneport.models.images.images import ImageSet, open_images
from pruneport.models.images.tasks import open_task
from pruneport.models.options import ImageOptions, PreparationOptions

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
    with pytest.raises(ImageFolderError, match="`images_limit` is 0; expected at least 1"):
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
def test_inputs_equal_torchvisions_bit_for_bit(
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
    grey = v2.Grayscale() if channels == 1 else v2.RGB()
    pixels = v2.Compose([grey, v2.Resize(resize), v2.CenterCrop(crop), v2.PILToTensor()])(image)
    expected = v2.functional.normalize(pixels / 255, list(mean), list(std))
    actual = inputs_of(opened(folder, (channels, *crop), resize=resize, mean=mean, std=std))[0]
    assert actual.dtype == torch.float32
    assert actual.is_contiguous()
    assert torch.equal(actual, expected)


def test_without_resize_the_shorter_side_is_the_crop(tmp_path: Path) -> None:
    image = picture(50, 30)
    image.save(tmp_path / "image.png")
    pixels = v2.Compose([v2.Resize(16), v2.CenterCrop((16, 16)), v2.PILToTensor()])(image)
    assert torch.equal(inputs_of(opened(tmp_path, (3, 16, 16)))[0], pixels / 255)


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
    expected = f"1 or {channels}" if channels > 1 else "1, as the input has channels"
    with pytest.raises(ImageFolderError, match=f"`{name}` has {count} numbers; expected {expected}"):
        opened(tmp_path, (channels, 8, 8), **{name: (0.5,) * count})


def test_resize_below_the_input(tmp_path: Path) -> None:
    flat_folder(tmp_path, 1)
    with pytest.raises(ImageFolderError, match="`resize=7` is smaller than the input of 8 x 6 pixels"):
        opened(tmp_path, (1, 8, 6), resize=7)


@pytest.mark.parametrize("channels", [2, 4])
def test_channels_that_no_image_has(channels: int, tmp_path: Path) -> None:
    flat_folder(tmp_path, 1)
    with pytest.raises(ImageFolderError, match=f"the network takes {channels} channels; image files give 1 or 3"):
        opened(tmp_path, (channels, 8, 8))


def test_a_deviation_of_zero_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageFolderError, match=r"`std` is \(0\.0,\); expected numbers above 0"):
        opened(flat_folder(tmp_path, 1), std=(0.0,))


def test_a_grey_input_of_lab_pixels(tmp_path: Path) -> None:
    Image.new("LAB", (8, 8)).save(tmp_path / "lab.tiff")
    with pytest.raises(
        ImageFolderError, match=r"lab\.tiff cannot be read \(conversion from LAB to \w+ not supported\)"
    ):
        inputs_of(opened(tmp_path))


# Orientation


@pytest.mark.parametrize("suffix", ["png", "webp", "tiff", "jpg"])
@pytest.mark.parametrize("orientation", [*range(1, 9), 0, 9])
def test_images_are_turned_as_their_exif_says_in_every_format(suffix: str, orientation: int, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "turned").mkdir()
    image = Image.fromarray(np.arange(12 * 8, dtype=np.uint8).reshape(8, 12) * 2).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = orientation
    kind: dict[str, object] = {"webp": {"lossless": True}, "jpg": {"quality": 100}}.get(suffix, {})
    path = tmp_path / "turned" / f"image.{suffix}"
    image.save(path, exif=exif, **kind)
    with Image.open(path) as written:
        assert written.getexif()[0x0112] == orientation
    stored = io.BytesIO()
    image.save(stored, "png", exif=exif)
    ImageOps.exif_transpose(Image.open(stored)).save(tmp_path / "plain" / "image.png")
    shown, expected = (inputs_of(opened(tmp_path / name, (3, 8, 8))) for name in ("turned", "plain"))
    torch.testing.assert_close(shown, expected, rtol=0, atol=0.02 if suffix == "jpg" else 0)


def test_damaged_metadata_of_an_image_is_passed_over(tmp_path: Path) -> None:
    content = io.BytesIO()
    picture(8, 8).save(content, "jpeg")
    damaged = b"\xff\xe1" + struct.pack(">H", 20) + b"Exif\0\0MM\0*\0\0\0\xff\0\0\0\0"
    (tmp_path / "image.jpg").write_bytes(content.getvalue()[:2] + damaged + content.getvalue()[2:])
    assert inputs_of(opened(tmp_path, (3, 8, 8))).shape == (1, 3, 8, 8)


def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), (value, value, value)) for value in (30, 90)]
    frames[0].save(tmp_path / "image.png", save_all=True, append_images=frames[1:])
    assert inputs_of(opened(tmp_path, (3, 8, 8))).mul(255).round().unique().tolist() == [30]


# Folders


def test_what_is_hidden_is_no_class(tmp_path: Path) -> None:
    for name in ("a", "b", ".git", "__MACOSX", "@eaDir"):
        flat_folder(tmp_path / name, 2)
    (tmp_path / "a" / "._000.png").write_bytes(b"\0\5\x16\7")
    flat_folder(tmp_path / "b" / ".thumbnails", 1)
    images = opened(tmp_path)
    assert images.classes == ("a", "b")
    assert images.labels == (0, 0, 1, 1)


def test_linked_class_folders_are_read(tmp_path: Path) -> None:
    flat_folder(tmp_path / "images" / "a", 1)
    flat_folder(tmp_path / "elsewhere", 2)
    (tmp_path / "images" / "b").symlink_to(tmp_path / "elsewhere")
    assert opened(tmp_path / "images").labels == (0, 1, 1)


@pytest.mark.parametrize("target", ["..", ".", "../a", "/"])
def test_a_ring_of_folders(target: str, tmp_path: Path) -> None:
    flat_folder(tmp_path / "a", 1)
    flat_folder(tmp_path / "b", 1)
    (tmp_path / "b" / "link").symlink_to(target)
    with pytest.raises(ImageFolderError, match=r"/(a|b/link|b) is, or leads to, a folder whose images are counted"):
        opened(tmp_path)


@pytest.mark.parametrize("name", [b"bad\xff", b"red\x1b[31m", b"two\nlines", "flip\u202e".encode()])
def test_names_of_classes_that_cannot_be_shown(name: bytes, tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/" + name
    os.mkdir(folder)
    picture(8, 8).save(Path(os.fsdecode(folder)) / "image.png")
    with pytest.raises(ImageFolderError, match="is not UTF-8, or has control characters; rename that folder") as caught:
        opened(tmp_path)
    assert str(caught.value).isprintable()
    with pytest.raises(ImageFolderError, match="rename that folder"):
        opened(Path(os.fsdecode(folder)))
    (Path(os.fsdecode(folder)) / "train").mkdir()
    with pytest.raises(ImageFolderError, match="rename that folder"):
        open_task(Path(os.fsdecode(folder)), PreparationOptions(), (3, 8, 8))


def test_a_file_whose_name_is_not_utf_8_is_read(tmp_path: Path) -> None:
    picture(8, 8).save(Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff.png")))
    assert inputs_of(opened(tmp_path, (3, 8, 8))).shape == (1, 3, 8, 8)


# Files that are no images


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png(size: tuple[int, int] = (8, 8), extra: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + extra + _chunk(b"IDAT", zlib.compress(bytes(72)))


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def _sparse(path: Path) -> None:
    path.write_bytes(_png())
    os.truncate(path, 2**31)


def _postscript(path: Path) -> None:
    picture(8, 8).save(path, "eps")


NO_IMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe": (os.mkfifo, "is a named pipe; expected a file"),
    "socket": (_socket, "is a socket; expected a file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is a device; expected a file"),
    "loop": (lambda path: path.symlink_to(path.name), "cannot be opened (Too many levels of symbolic links)"),
    "gone": (lambda path: path.symlink_to("nowhere"), "is a link to nothing"),
    "large": (_sparse, "is larger than 1 GiB"),
    "text": (
        lambda path: path.write_bytes(_png(extra=_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**21))))),
        "cannot be read (Decompressed data too large",
    ),
    "bomb": (lambda path: path.write_bytes(_png((2**15, 2**15))), "cannot be read (Image size (1073741824 pixels)"),
    "strip": (
        lambda path: Image.new("L", (3_000_000, 1)).save(path),
        "would have 24000000 x 8 with a shorter side of 8",
    ),
    "program": (_postscript, "cannot be read (not an image of a known format)"),
    "empty": (lambda path: path.touch(), "cannot be read (not an image of a known format)"),
}


@pytest.mark.parametrize("kind", NO_IMAGES)
def test_what_is_no_image(kind: str, tmp_path: Path) -> None:
    make, said = NO_IMAGES[kind]
    make(tmp_path / "it.png")
    with pytest.raises(ImageFolderError) as caught:
        opened(tmp_path).check_readable()
    assert f"image {tmp_path}/it.png " in str(caught.value)
    assert said in str(caught.value)
