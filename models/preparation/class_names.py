"""What the classes of a network are called, in the order of its outputs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from pruneport.errors import SourceError
from pruneport.models.files import not_a_file
from pruneport.models.outputs import read_outputs
from pruneport.models.preparation.known import infer_class_names
from pruneport.models.record import Source

__all__ = ["named", "read_class_names"]

_MOST_BYTES = 2**24


def read_class_names(file: Path) -> tuple[str, ...]:
    """Read names, one a line in the order of the outputs; empty lines at the end do not count.

    Raises:
        SourceError: There is no such file, it is no text, or a line in it is empty or stands twice.
    """
    if found := not_a_file(file):
        raise SourceError(f"there are no `class_names` in {file}: it {found}. Give a text file with one name a line.")
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise SourceError(f"`class_names` {file} is larger than {_MOST_BYTES} bytes; expected one name a line.")
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(
            f"`class_names` {file} cannot be read ({error}); expected text in UTF-8, one name a line."
        ) from error
    names = [line.strip() for line in text.rstrip().splitlines()]
    places: dict[str, int] = {}
    for number, name in enumerate(names, 1):
        if not name:
            raise SourceError(f"`class_names` {file}: line {number} is empty; expected one name a line.")
        if name in places:
            raise SourceError(f"`class_names` {file}: lines {places[name]} and {number} are both {name!r}.")
        places[name] = number
    if not names:
        raise SourceError(f"`class_names` {file} is empty; expected one name a line, in the order of the outputs.")
    return tuple(names)


def named(source: Source, network: nn.Module, file: Path | None) -> Source:
    """The source with the names of its classes: those in the file, else those that its weights bring, if they fit.

    Raises:
        SourceError: The file cannot be used, or has another number of names than the network has outputs.
    """
    names = infer_class_names(source, network) if file is None else read_class_names(file)
    if not names:
        return source
    count = _class_count(network, source.image_shape)
    if count != len(names) and file is not None:
        scores = "no scores of classes" if count is None else f"scores of {count} classes"
        raise SourceError(f"`class_names` {file} has {len(names)} names; the network's main output has {scores}.")
    return replace(source, class_names=names) if count == len(names) else source


def _class_count(network: nn.Module, shape: tuple[int, int, int]) -> int | None:
    """How many classes the main output scores, of the image or of each pixel; None where it scores none."""
    try:
        with torch.inference_mode():
            outputs = read_outputs(network(torch.zeros(1, *shape)))
    except Exception:  # a forward may raise anything; who runs it next says what is wrong
        return None
    scores = outputs.tensors[outputs.main]
    return scores.shape[1] if scores.ndim in (2, 4) and scores.is_floating_point() else None
