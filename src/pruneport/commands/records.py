"""What earlier verbs wrote into a bundle: read, each by its schema, where card and report are drawn anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pruneport.bench.latency.records import read_measured
from pruneport.documents import read_start
from pruneport.errors import BundleError
from pruneport.export.bundle.bundle import BENCH, VERIFY, Bundle
from pruneport.export.records import read_verified
from pruneport.progress import Note, Progress

__all__ = ["read_record", "read_replaced"]

_READERS: dict[str, tuple[str, Callable[[bytes, str, str], dict[str, Any]]]] = {
    VERIFY: ("verify", read_verified),
    BENCH: ("bench", read_measured),
}


def read_record(bundle: Bundle, name: str) -> dict[str, Any] | None:
    """What stands in verify.json or bench.json; None where it was not written yet.

    Raises:
        BundleError: The file is damaged; the message names the verb that writes it.
    """
    if name not in bundle.files:
        return None
    verb, read = _READERS[name]
    return read(
        read_start(bundle.path(name)),
        f"{bundle.folder / name} is not what pruneport {verb} writes",
        f"Write it anew with: pruneport {verb} {bundle.folder} (where others are damaged, too, start with: pruneport "
        f"export {bundle.folder}).",
    )


def read_replaced(bundle: Bundle, name: str, progress: Progress) -> dict[str, Any] | None:
    """The same of a file that is about to be written: where it is damaged, nothing is kept of it, which is said."""
    try:
        return read_record(bundle, name)
    except BundleError as error:
        progress(Note(f"nothing is kept of what was there: {error}"))
        return None
