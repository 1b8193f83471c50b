"""Flags before what is known, what is known before ImageNet's; numbers that cannot be are named."""

from __future__ import annotations

from typing import Any

import pytest

from pruneport.errors import ImageFolderError
from pruneport.models.options import PreparationOptions
from pruneport.models.preparation.resolve import describe, is_guess, prepared, resolve
from pruneport.models.record import Preprocessing, Source

KNOWN = Preprocessing(
    resize=248, interpolation="bicubic", mean=(0.5,) * 3, std=(0.25,) * 3, squash=True, origin="timm's x"
)
SHAPE = (3, 224, 224)


def test_nothing_is_given() -> None:
    assert resolve(PreparationOptions(), SHAPE, KNOWN) == KNOWN
    found = resolve(PreparationOptions(), SHAPE)
    assert (found.resize, found.interpolation, found.origin) == (224, "bilinear", "ImageNet's")
    assert found.mean == (0.485, 0.456, 0.406)


def test_what_is_given_has_the_last_word() -> None:
    options = PreparationOptions(mean=(0.1,), resize=300)
    found = resolve(options, SHAPE, KNOWN)
    assert (found.mean, found.std, found.resize, found.squash) == ((0.1,) * 3, KNOWN.std, 300, False)
    assert found.origin == "timm's x; given: `resize`, `mean`"
    assert resolve(options, SHAPE, found) == found  # the same, however often
    again = resolve(PreparationOptions(std=(0.2,)), SHAPE, found)
    assert (again.mean, again.origin) == (found.mean, "timm's x; given: `resize`, `mean`, `std`")
    assert resolve(PreparationOptions(interpolation="nearest"), SHAPE, KNOWN).squash


def test_what_is_neither_known_nor_given_is_a_guess() -> None:
    assert is_guess(resolve(PreparationOptions(), SHAPE))
    assert is_guess(resolve(PreparationOptions(mean=(0.1,), resize=300), SHAPE))
    assert not is_guess(resolve(PreparationOptions(), SHAPE, KNOWN))
    given = resolve(PreparationOptions(mean=(0.1,), std=(0.2,)), SHAPE)
    assert not is_guess(given)
    assert not is_guess(resolve(PreparationOptions(resize=300), SHAPE, given))


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        (
            {"mean": (123.675, 116.28, 103.53)},
            SHAPE,
            r"`mean` is \(123\.675, .*divide those of pixels up to 255 by 255",
        ),
        ({"mean": (-0.5,)}, SHAPE, "expected numbers from 0 to 1"),
        ({"std": (0.2, 0.2)}, SHAPE, "`std` has 2 numbers; expected 1 or 3"),
        ({"std": (0.0,)}, SHAPE, "expected numbers above 0"),
        ({"resize": 223}, SHAPE, "`resize=223` is smaller than the input of 224 x 224"),
        ({}, (3, 256, 256), "`resize=248` is smaller than the input of 256 x 256"),
        ({"mean": (0.5,)}, (4, 8, 8), "the network takes 4 channels; image files give 1 or 3"),
    ],
)
def test_numbers_that_cannot_be(options: Any, shape: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ImageFolderError, match=message):
        resolve(PreparationOptions(**options), shape, KNOWN)


def test_a_network_without_images_is_left_alone_unless_it_is_asked() -> None:
    source = Source(spec="x:y", model_args={}, input_shape=(4, 8, 8))
    assert prepared(source, PreparationOptions()) == source
    with pytest.raises(ImageFolderError, match="4 channels"):
        prepared(source, PreparationOptions(std=(0.5,)))


def test_in_words() -> None:
    assert describe(KNOWN, SHAPE) == (
        "both sides to 248 pixels (bicubic), centre crop of 224 x 224, pixels in 0 to 1, less 0.5, 0.5, 0.5, over "
        "0.25, 0.25, 0.25 (timm's x)"
    )
