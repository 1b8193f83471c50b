"""Names that are no source: what was probably meant by them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from pathlib import Path

from pruneport.models.checkpoints.checkpoint import SUFFIXES
from pruneport.models.record import LIBRARIES

__all__ = ["meant_by", "not_a_source"]

_KINDS = f"{', '.join(f'{library}:NAME' for library in LIBRARIES)}, package.module:factory or path/to/file.py:factory"


def not_a_source(spec: str) -> str:
    """What is wrong with a source that has no colon, and what to give in its place.

    Args:
        spec: As it was given.

    Returns:
        A message for an error.
    """
    suffix = Path(spec).suffix.lower()
    if suffix in SUFFIXES:
        return (
            f"source {spec!r} is a file of weights, which do not say how the network is built: name the network and use"
            f" `checkpoint`, such as torchvision:resnet50 with `checkpoint` {spec}. A source is one of {_KINDS}."
        )
    if suffix == ".onnx":
        return (
            f"source {spec!r} is an ONNX file, which is what pruneport writes; expected the network in torch: {_KINDS}."
        )
    if suffix == ".py":
        return f"source {spec!r} names no function; expected {spec}:FUNCTION, which returns the network."
    return f"source {spec!r} is not understood; expected one of {_KINDS}.{meant_by(spec)}"


def meant_by(name: str) -> str:
    """A question with the sources of this name, or else of the nearest names; an empty string where there is none."""
    wanted = re.sub(r"^(torchvision|timm|pruneport)([./]models)?[./]", "", name).lower().replace("-", "_")
    near: list[str] = []
    for library, names in _offered():
        if wanted in names:
            return f" Did you mean {library}:{wanted}?"
        close = difflib.get_close_matches(wanted, names, n=2, cutoff=0.7)
        close = close or [name for name in names if wanted and name.startswith(f"{wanted}_")][:2]
        near += [f"{library}:{name}" for name in close]
    return f" Did you mean {' or '.join(near[:3])}?" if near else ""


def _offered() -> Iterator[tuple[str, list[str]]]:
    """Libraries and the names of their networks; each is imported when it is its turn."""
    from torchvision import models

    yield "torchvision", models.list_models()
    yield "pruneport", ["digits_resnet"]
    try:
        import timm
    except ModuleNotFoundError:
        return
    yield "timm", timm.list_models()
