"""What a user asks of ONNX files, checked before any work."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar, get_args

import msgspec

from pruneport.compress.surgery.plan_schema import MOST_INPUTS
from pruneport.errors import InputError
from pruneport.export.onnx.opsets import OLDEST, newest_opset
from pruneport.export.options import DynamicName, EmbeddedName, ExportOptions
from pruneport.models.inputs import INPUT_NAME

__all__ = [
    "ANY_BATCH",
    "InputSizes",
    "check_form",
    "file_names",
    "names_in",
    "open_sizes",
    "other_size",
    "ranges_in",
    "shape_in",
]

_T = TypeVar("_T")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_./:-]{0,199}")
_FURTHER = (32, 64)  # added to height and width: a multiple of most networks' strides, and not the same in both


@dataclass(frozen=True, kw_only=True)
class InputSizes:
    """Which inputs ONNX files take.

    Attributes:
        batch: The one batch size, or None where they take any.
        any_size: Whether height and width are open, too.
        embedded: The preprocessing that the files hold, or None where they take normalised inputs.
    """

    batch: int | None = None
    any_size: bool = False
    embedded: EmbeddedName | None = None

    def __str__(self) -> str:
        """In words."""
        said = "any batch size" if self.batch is None else f"batches of {self.batch}, and no others"
        return f"{said}, and images of any height and width that the network itself takes" if self.any_size else said


ANY_BATCH = InputSizes()
"""What they take where nothing else is asked for."""


def check_form(options: ExportOptions, *, one_input: bool = True) -> None:
    """Check all that can be without the network.

    Args:
        options: What is asked for.
        one_input: Whether the network is known to have no more.

    Raises:
        InputError: Names every fault.
    """
    if faults := list(_faults(options, one_input)):
        raise InputError(" ".join(faults))


def _faults(options: ExportOptions, one_input: bool) -> Iterator[str]:
    batch = options.batch_size_fixed
    if batch is not None and not 1 <= batch < 2**31:
        most = "at least 1" if batch < 1 else "less than 2147483648"
        yield f"`batch_size_fixed` is {batch}; expected {most}, or leave it out for any batch size."
    if options.dynamic not in get_args(DynamicName):
        yield f"`dynamic` is {options.dynamic!r}; expected one of {', or '.join(get_args(DynamicName))}."
    elif open_sizes(options) and batch is not None:
        yield (
            f"`dynamic` {options.dynamic} leaves the batch size open, and `batch_size_fixed` is {batch}; give one of "
            "the two."
        )
    if options.opset is not None and not OLDEST <= options.opset <= newest_opset():
        yield (
            f"`opset` is {options.opset}; expected {OLDEST} to {newest_opset()}: torch's exporter has none below, "
            "and the ONNX Runtime here takes none above."
        )
    if one_input and len(options.input_names) > 1:
        yield f"`input_names` are {', '.join(map(repr, options.input_names))}; expected one: a network has one input."
    for option in ("input_names", "output_names"):
        names: Sequence[str] = getattr(options, option)
        if odd := [name for name in names if not _NAME.fullmatch(name)]:
            yield (
                f"`{option}` has {', '.join(map(ascii, odd))}; expected at most 200 letters, digits and "
                "_ . / : - with a letter or _ first."
            )
    twice = [name for name, times in Counter((*options.input_names, *options.output_names)).items() if times > 1]
    if twice:
        yield f"`input_names` and `output_names` have {', '.join(twice)} more than once; every name must be another."


def file_names(
    options: ExportOptions, outputs: Sequence[str], inputs: Sequence[str] = (INPUT_NAME,)
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the inputs and of the outputs in the file.

    Args:
        options: What was asked for; ``check_form`` has passed.
        outputs: The names that the outputs have by themselves, in order.
        inputs: Those that the inputs have.

    Raises:
        InputError: There are not as many names as inputs or outputs, or an output is called as an input is to be.
    """
    entries = options.input_names or tuple(inputs)
    if len(entries) != len(inputs):
        raise InputError(
            f"`input_names` are {', '.join(entries)}: {len(entries)} for the {len(inputs)} "
            f"input{'s' * (len(inputs) > 1)} {', '.join(inputs)}; give one for each, in this order."
        )
    if options.output_names and len(options.output_names) != len(outputs):
        raise InputError(
            f"`output_names` are {', '.join(options.output_names)}: {len(options.output_names)} for the "
            f"{len(outputs)} outputs {', '.join(outputs)}; give one for each, in this order."
        )
    names = options.output_names or tuple(outputs)
    if both := [name for name in entries if name in names]:
        raise InputError(
            f"{', '.join(both)} would be the name of an input and of an output; choose other `input_names` or "
            "`output_names`."
        )
    return entries, names


def names_in(metadata: str) -> tuple[str, ...]:
    """The names that a file's metadata lists as JSON; none where it is something else."""
    return _json(metadata, tuple[str, ...]) or ()


def shape_in(metadata: str) -> tuple[int, int, int] | None:
    """The size (C, H, W) of images in a file's metadata; None where it is none, or too large."""
    shape = _json(metadata, tuple[int, int, int])
    return shape if shape and min(shape) >= 1 and math.prod(shape) <= MOST_INPUTS else None


def ranges_in(metadata: str) -> dict[str, tuple[float, float]]:
    """The lowest and highest value that inputs may be given, by a file's metadata; none where it is none."""
    return _json(metadata, dict[str, tuple[int | float, int | float]]) or {}


def _json(text: str, kind: type[_T]) -> _T | None:
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None


def open_sizes(options: ExportOptions) -> bool:
    """Whether height and width stay open."""
    return options.dynamic == "batch,height,width"


def other_size(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """A second size (C, H, W) of images, at which files of open sizes are checked."""
    channels, height, width = shape
    return channels, height + _FURTHER[0], width + _FURTHER[1]
