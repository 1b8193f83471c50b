"""From what a user gives and what is known of a network to one preprocessing."""

from __future__ import annotations

import math
from dataclasses import replace

from pruneport.errors import ImageFolderError
from pruneport.models.options import PREPARATION, PreparationOptions, given_of
from pruneport.models.record import Preprocessing, Source

__all__ = ["describe", "differences", "is_guess", "prepared", "resolve"]

_DEFAULT, _GIVEN = "ImageNet's", "; given: "
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as torchvision documents them


def resolve(
    options: PreparationOptions, shape: tuple[int, int, int], known: Preprocessing | None = None
) -> Preprocessing:
    """What is given, else what is known, else ImageNet's mean and deviation on a crop of the whole shorter side.

    Args:
        options: The user's; each is None where it is not given.
        shape: C, H, W of the network's input.
        known: What the network's source or plan says.

    Raises:
        ImageFolderError: The input has other channels than images have, or numbers do not fit it.
    """
    channels, height, width = shape
    if channels not in (1, 3):
        raise ImageFolderError(
            f"the network takes {channels} channels; image files give 1 or 3. Leave out `images`, `calibration`, "
            "`mean`, `std`, `resize` and `interpolation`."
        )
    largest = max(height, width)
    known = known or Preprocessing(resize=largest, interpolation="bilinear", mean=_MEAN, std=_STD, origin=_DEFAULT)
    given = given_of(options, PREPARATION)
    _check_given(options)
    both = {name: _per_channel(name, options, known, channels) for name in ("mean", "std")}
    resize = known.resize if options.resize is None else options.resize
    if resize < largest:
        raise ImageFolderError(f"`resize={resize}` is smaller than the input of {height} x {width} pixels.")
    origin, _, before = known.origin.partition(_GIVEN)
    listed = ", ".join(dict.fromkeys([*before.split(", "), *given])).removeprefix(", ")
    return Preprocessing(
        resize=resize,
        interpolation=options.interpolation or known.interpolation,
        squash=known.squash and options.resize is None,
        origin=f"{origin}{_GIVEN}{listed}" if given else known.origin,
        **both,
    )


def prepared(source: Source, options: PreparationOptions) -> Source:
    """The source with what its images' preprocessing is once the user's options count; as it is for no images.

    Raises:
        ImageFolderError: See ``resolve``.
    """
    if not given_of(options, PREPARATION) and (source.inputs is not None or source.image_shape[0] not in (1, 3)):
        return source
    return replace(source, preprocessing=resolve(options, source.image_shape, source.preprocessing))


def is_guess(preprocessing: Preprocessing) -> bool:
    """Whether mean and deviation are ImageNet's for want of others: neither the source nor the user has said them."""
    origin, _, given = preprocessing.origin.partition(_GIVEN)
    return origin == _DEFAULT and not {"`mean`", "`std`"} <= set(given.split(", "))


def differences(known: Preprocessing, used: Preprocessing, shape: tuple[int, int, int]) -> list[str]:
    """In what images are prepared otherwise than is known of the network, in words; nothing where they are not."""
    usual = resolve(PreparationOptions(), shape, known)
    found = [
        f"`{name}` {_number(getattr(used, name))} in place of {_number(getattr(usual, name))}"
        for name in PREPARATION
        if getattr(used, name) != getattr(usual, name)
    ]
    if used.squash != usual.squash:
        sides = {True: "both sides", False: "the shorter side"}
        found.append(f"{sides[used.squash]} resized in place of {sides[usual.squash]}")
    return found


def describe(preprocessing: Preprocessing, shape: tuple[int, int, int]) -> str:
    """The preprocessing in words."""
    _, height, width = shape
    side = "both sides" if preprocessing.squash else "shorter side"
    mean, std = (", ".join(f"{number:g}" for number in values) for values in (preprocessing.mean, preprocessing.std))
    return (
        f"{side} to {preprocessing.resize} pixels ({preprocessing.interpolation}), centre crop of {height} x {width}, "
        f"pixels in 0 to 1, less {mean}, over {std} ({preprocessing.origin})"
    )


def _number(value: object) -> str:
    return " ".join(f"{number:g}" for number in value) if isinstance(value, tuple) else str(value)


def _check_given(options: PreparationOptions) -> None:
    """Raise where numbers are not of pixels in [0, 1]."""
    if options.mean is not None and not all(0 <= number <= 1 for number in options.mean):
        raise ImageFolderError(
            f"`mean` is {options.mean}; expected numbers from 0 to 1, of pixels in [0, 1]: divide those of pixels up "
            "to 255 by 255, and `std` too."
        )


def _per_channel(name: str, options: PreparationOptions, known: Preprocessing, channels: int) -> tuple[float, ...]:
    """Numbers, one a channel; those that are known of three channels are averaged for one."""
    given: tuple[float, ...] | None = getattr(options, name)
    values: tuple[float, ...] = getattr(known, name) if given is None else given
    if given is None and channels == 1 and len(values) == 3:
        values = (sum(values) / 3,)
    if len(values) not in (1, channels):
        counts = "1" if channels == 1 else f"1 or {channels}"
        raise ImageFolderError(f"`{name}` has {len(values)} numbers; expected {counts}, as the input has channels.")
    if name == "std" and not all(0 < number < math.inf for number in values):
        raise ImageFolderError(f"`std` is {values}; expected numbers above 0, of pixels in [0, 1].")
    return values * channels if len(values) == 1 else values
