"""JSON documents of a bundle, read by a schema: what does not fit it is refused before anything is made of it.

A schema is a type: dataclasses and ``msgspec`` structs with annotated fields. Whatever it says, a document has no
numbers that are infinite or beyond 64 bits, no key twice, and no more bytes and parts than ``MOST_BYTES`` and
``MOST_PARTS``.
"""

from __future__ import annotations

import json
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

import msgspec

from pruneport.errors import BundleError, PruneportError

__all__ = [
    "MOST_BYTES",
    "MOST_PARTS",
    "Count",
    "Json",
    "Path",
    "Share",
    "Size",
    "check_document",
    "check_format",
    "fit_document",
    "load_document",
    "read_start",
]

MOST_BYTES = 32 * 2**20
MOST_PARTS = 10**6
"""Of the largest document: bytes, and objects and arrays, of which a few bytes each take much more memory."""

Json = Mapping[str, Any]
"""One that was read, or is about to be written, for those who only look into it."""

Count = Annotated[int, msgspec.Meta(ge=0)]
Size = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
"""A dimension of a tensor."""
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Path = Annotated[str, msgspec.Meta(pattern=r"^[^\x00]*\Z")]

_Kind = TypeVar("_Kind")
_LEAST, _MOST = -(2**63), 2**63 - 1
_HALF_PAIRS = re.compile(r"(\\u[dD][89abAB]..\\u[dD][c-fC-F]..)|\\u[dD](?:[89abAB]..|[d-fD-F]..|[cC][0-7].)")


class _Fault(ValueError):
    """What is wrong with a document."""


def load_document(content: bytes | str, versions: Sequence[int], name: str, advice: str) -> dict[str, Any]:
    """Read JSON with a ``format_version``, before any schema.

    Args:
        content: JSON.
        versions: The formats that are understood.
        name: What the document should be and is not, for messages, such as "DIR/manifest.json is not a manifest".
        advice: What to do where it is none, as a sentence.

    Raises:
        BundleError: It is no such JSON, or of a newer format.
    """
    try:
        loaded = _load(content)
    except _Fault as error:
        raise BundleError(f"{name}: {error}. {advice}") from error
    if not isinstance(loaded, dict) or "format_version" not in loaded:
        raise BundleError(f"{name}: expected JSON with a format_version. {advice}")
    check_format(loaded["format_version"], versions, name.partition(" is not ")[0])
    return loaded


def check_document(content: bytes, schema: type, versions: Sequence[int], name: str, advice: str) -> dict[str, Any]:
    """Read JSON as it is, once it fits a schema; see ``load_document``.

    Raises:
        BundleError: It is no such JSON, does not fit the schema, or is of a newer format.
    """
    loaded = load_document(content, versions, name, advice)
    fit_document(loaded, schema, name, advice)
    return loaded


def check_format(
    version: object,
    versions: Sequence[int],
    name: object,
    *,
    error: type[PruneportError] = BundleError,
    otherwise: str = "",
) -> None:
    """Refuse what a newer pruneport wrote.

    Args:
        version: As it was read.
        versions: The formats that are understood.
        name: Of what has it, for the message.
        error: What is raised.
        otherwise: What to do in place of an upgrade, such as ", or delete the file".

    Raises:
        PruneportError: An ``error``, where the version is another or is no number.
    """
    if type(version) is not int or version not in versions:
        reads = f"format {versions[0]}" if len(versions) == 1 else f"formats {versions[0]} to {versions[-1]}"
        raise error(
            f"{name} has format {str(version)[:40]}; this pruneport reads {reads}. Upgrade with: pip install --upgrade "
            f"pruneport{otherwise}."
        )


def read_start(file: pathlib.Path) -> bytes:
    """The content of a document, or just more than the most that one may have."""
    with file.open("rb") as stream:
        return stream.read(MOST_BYTES + 1)


def fit_document(loaded: Any, kind: type[_Kind], name: str, advice: str) -> _Kind:
    """Read what ``load_document`` returned, or a part of it, by its schema.

    Raises:
        BundleError: It does not fit; the message says where.
    """
    try:
        return msgspec.convert(loaded, kind, str_keys=True)
    except msgspec.ValidationError as error:
        fault = str(error).replace("`$.", "`").replace(" - at `$`", "")
        raise BundleError(f"{name}: {fault}. {advice}") from error
    except UnicodeEncodeError as error:  # half of a character where no text is expected
        raise BundleError(f"{name}: {error.object[:40]!r} stands where no text is expected. {advice}") from error


def _load(content: bytes | str) -> Any:
    """Parse JSON, and raise a fault for what no document of ours has."""
    if len(content) > MOST_BYTES:
        raise _Fault(f"it has more than {MOST_BYTES} bytes")
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
        if text.count("[") + text.count("{") > MOST_PARTS:
            raise _Fault(f"it has more than {MOST_PARTS} objects and arrays")
        text = _HALF_PAIRS.sub(lambda found: found[1] or r"\ufffd", text) if "\\u" in text else text
        return json.loads(
            text,
            object_pairs_hook=_mapping,
            parse_int=_whole_number,
            parse_float=_number,
            parse_constant=_number,
        )
    except UnicodeDecodeError as error:
        raise _Fault(f"byte {error.start} is not UTF-8") from error
    except RecursionError as error:
        raise _Fault("its parts lie too deep in each other") from error
    except json.JSONDecodeError as error:
        raise _Fault(f"it is no JSON ({error})") from error


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, whose keys must differ."""
    loaded = dict(pairs)
    if len(loaded) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _Fault(f"the key {twice[:80]!r} stands twice in one object")
    return loaded


def _whole_number(text: str) -> int:
    value = int(text) if len(text) <= len(str(_LEAST)) else None
    if value is None or not _LEAST <= value <= _MOST:
        raise _Fault(f"the number {text[:40]} is beyond 64 bits")
    return value


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _Fault(f"the number {text[:40]} is not finite")
    return value
