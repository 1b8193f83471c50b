"""Documents: JSON is refused for what no schema should have to say; a schema's faults are named with their place."""

from __future__ import annotations

import re
from typing import Annotated, Any

import msgspec
import pytest

from pruneport.documents import MOST_BYTES, MOST_PARTS, Count, Size, check_format, fit_document, load_document
from pruneport.errors import BundleError, StoreError

_NAME = ("x.json is not a thing", "Make it anew.")


class _Thing(msgspec.Struct):
    format_version: int
    counts: list[Count] = []
    by_number: dict[int, Size] = {}
    text: Annotated[str, msgspec.Meta(max_length=3)] = ""


def _read(content: bytes | str) -> _Thing:
    return fit_document(load_document(content, (1, 2), *_NAME), _Thing, *_NAME)


def test_a_document_is_read() -> None:
    thing = _read(b'{"format_version": 2, "counts": [0, 9223372036854775807], "by_number": {"3": 4}, "more": null}')
    assert (thing.counts, thing.by_number) == ([0, 2**63 - 1], {3: 4})


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "it is no JSON"),
        (b'{"format_version": 1', "it is no JSON"),
        (b"[1]", "expected JSON with a format_version"),
        (b'{"format_version": 1, "text": "\xff"}', "byte 31 is not UTF-8"),
        (b'{"format_version": 1, "a": 9223372036854775808}', "the number 9223372036854775808 is beyond 64 bits"),
        (b'{"format_version": 1, "a": -1' + b"0" * 5000 + b"}", "is beyond 64 bits"),
        (b'{"format_version": 1, "a": 1e999}', "the number 1e999 is not finite"),
        (b'{"format_version": 1, "a": NaN}', "the number NaN is not finite"),
        (b'{"format_version": 1, "a": [-Infinity]}', "the number -Infinity is not finite"),
        (b'{"format_version": 1, "a": {"b": 1, "b": 1}}', "the key 'b' stands twice in one object"),
        (b'{"format_version": 1, "a": ' + b"[" * 90_000, "too deep in each other|it is no JSON"),
        (b'{"format_version": 1, "a": ' + b'{"a":' * 90_000, "too deep in each other|it is no JSON"),
        (b'{"format_version": 1, "a": [' + b"[]," * MOST_PARTS, f"more than {MOST_PARTS} objects and arrays"),
        (b" " * (MOST_BYTES + 1), f"more than {MOST_BYTES} bytes"),
        (b'{"format_version": 1, "counts": [0, -1]}', r"Expected `int` >= 0 - at `counts\[1\]`"),
        (b'{"format_version": 1, "counts": [true]}', r"Expected `int`, got `bool` - at `counts\[0\]`"),
        (b'{"format_version": 1, "counts": [1.0]}', r"Expected `int`, got `float` - at `counts\[0\]`"),
        (b'{"format_version": 1, "counts": "\\udcff"}', "stands where no text is expected"),
        (b'{"format_version": 1, "by_number": {"1": 1000000000000}}', "Expected `int` <= 2147483647"),
        (b'{"format_version": 1, "text": "four"}', "Expected `str` of length <= 3 - at `text`"),
    ],
)
def test_what_is_refused(content: bytes, fault: str) -> None:
    with pytest.raises(BundleError, match=rf"x\.json is not a thing: .*({fault}).*\. Make it anew\."):
        _read(content)


@pytest.mark.parametrize("version", [0, 3, True, "1", None, 1.0, [1]])
def test_other_formats_are_told_to_upgrade(version: Any) -> None:
    content = msgspec.json.encode({"format_version": version})
    with pytest.raises(BundleError, match=r"x\.json has format .*; this pruneport reads formats 1 to 2\. Upgrade with"):
        _read(content)


@pytest.mark.parametrize(
    ("escaped", "text"),
    [
        (r"\ud83d\ude00", "\U0001f600"),  # both halves of one character
        (r"\ud83d", "�"),
        (r"\ude00", "�"),
        (r"\ud83dx", "�x"),
        (r"\udcff", "\udcff"),  # a byte of a file's name, as Python writes those that are not UTF-8
    ],
)
def test_half_characters_are_replaced(escaped: str, text: str) -> None:
    assert _read(f'{{"format_version": 1, "text": "{escaped}"}}').text == text


@pytest.mark.parametrize("version", [0, 3, "1", 1.0, None, True])
def test_other_formats_are_refused(version: object) -> None:
    message = "x has format .*; this pruneport reads formats 1 to 2. Upgrade with: pip install --upgrade pruneport"
    with pytest.raises(BundleError, match=message):
        check_format(version, (1, 2), "x")


def test_the_error_of_a_format_is_the_callers() -> None:
    with pytest.raises(StoreError, match=re.escape("reads format 1. Upgrade") + ".*, or choose another --out."):
        check_format(2, (1,), "x", error=StoreError, otherwise=", or choose another --out")
    check_format(1, (1,), "x", error=StoreError)
