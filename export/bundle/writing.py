"""A bundle is written: it appears whole or not at all, and changes wholly or not at all, one process at a time.

How that is done on the disk stands in ``unfinished``.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import safetensors

from pruneport.errors import BundleError, OutputError
from pruneport.export.bundle.bundle import FORMAT_VERSION, MANIFEST, Bundle, entry_of, read_bundle
from pruneport.export.bundle.manifest import manifest_header
from pruneport.export.bundle.unfinished import (
    begin_bundle,
    begin_update,
    move_in,
    place_lock,
    put_back,
    settle,
    swap_in,
    take_back,
    update_lock,
)
from pruneport.files import check_free, held, made_folder

__all__ = ["check_output", "new_bundle", "placed_bundle", "update_bundle"]


def check_output(folder: Path, overwrite: bool) -> None:
    """Refuse an output folder that cannot become the bundle, before any work is done.

    Raises:
        OutputError: It is taken, is no bundle to overwrite, or it or its parent cannot be written.
        InUseError: Another process is at work on it.
    """
    if "\0" in str(folder):
        raise OutputError(f"`out` {folder} has a null byte in its name; choose another folder.")
    settle(folder)
    _check_place(folder, overwrite)
    check_free(update_lock(folder), folder)
    place = place_lock(Path(os.path.realpath(folder)))
    try:
        if place.parent.is_dir():  # some folders say that they can be written to, and cannot
            with held(place, folder):
                pass
    except OSError as error:
        raise OutputError(
            f"`out` {folder} cannot be written ({error.strerror}); choose a folder that you may write to."
        ) from error


def _check_place(folder: Path, overwrite: bool) -> None:
    """Raise where a bundle cannot be made in this place."""
    try:
        folder.exists()
    except OSError as error:
        raise OutputError(f"`out` {folder} cannot be used: {error.strerror}; choose another folder.") from error
    if folder.is_file() or (folder.is_symlink() and not folder.is_dir()):
        raise OutputError(f"`out` {folder} is a file; expected a folder that does not exist yet.")
    if folder.is_dir() and any(folder.iterdir()):
        if not overwrite:
            raise OutputError(f"`out` {folder} is not empty; choose another folder, or replace it with `overwrite`.")
        if not (folder / MANIFEST).is_file():
            raise OutputError(
                f"`out` {folder} is not empty and is not a bundle (no {MANIFEST}); `overwrite` replaces bundles only. "
                "Choose another folder."
            )
        if not os.access(folder, os.W_OK | os.X_OK):
            raise OutputError(f"`out` {folder} is write-protected; choose another folder, or allow writing to it.")
    parent = next(path for path in folder.absolute().parents if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"`out` {folder}: {parent} is not writable; choose a folder that you may write to.")


@contextmanager
def new_bundle(folder: Path, overwrite: bool, command: str) -> Iterator[Path]:
    """Yield a hidden folder to fill; it becomes ``folder`` when the block ends without an error.

    Raises:
        OutputError: The folder is taken or cannot be written, or the disk is full; nothing is left behind.
        InUseError: Another process is at work on it.
    """
    with placed_bundle(folder, overwrite) as staging:
        yield staging
        _write_manifest(staging, {path.name: entry_of(path) for path in sorted(staging.iterdir())}, [command])


@contextmanager
def placed_bundle(folder: Path, overwrite: bool) -> Iterator[Path]:
    """The same for a bundle that brings its manifest, which the block has to check."""
    check_output(folder, overwrite)
    folder = Path(os.path.realpath(folder))  # a link to a bundle stays a link
    try:
        with made_folder(folder.parent), held(place_lock(folder), folder), ExitStack() as old:
            put_back(folder)
            _check_place(folder, overwrite)  # once more: what a killed process left, or another one made meanwhile
            if (folder / MANIFEST).is_file():
                old.enter_context(held(update_lock(folder), folder))
            try:
                staging = begin_bundle(folder)
                yield staging
                old.close()  # Windows moves no folder in which a file is open
                swap_in(folder)
            finally:
                put_back(folder)
    except BaseException as error:
        _reraise(error, folder)


@contextmanager
def update_bundle(bundle: Bundle, command: str, outdated: Sequence[str] = ()) -> Iterator[Path]:
    """Yield a hidden folder; its files move into the bundle when the block ends, the manifest last.

    Args:
        bundle: What to update.
        command: The command line, for the manifest.
        outdated: Files that say what is no longer so once the new ones are there; they go, where they are, as the
            new ones come.

    Raises:
        OutputError: The bundle cannot be written, or the disk is full; the bundle is as it was.
        InUseError: Another process is at work on it.
        BundleError: Another process has changed it since it was opened.
    """
    folder = bundle.folder
    try:
        with held(update_lock(folder), folder):
            take_back(folder)
            now = read_bundle(folder)
            if (now.files, now.commands) != (bundle.files, bundle.commands):
                raise BundleError(f"{folder} was changed by another process meanwhile; nothing was kept. Try again.")
            try:
                staging = begin_update(folder)
                yield staging
                fresh = {path.name: entry_of(path) for path in sorted(staging.iterdir())}
                lasting = {name: entry for name, entry in bundle.files.items() if name not in outdated}
                _write_manifest(staging, {**lasting, **fresh}, [*bundle.commands, command])
                move_in(folder, (*fresh, MANIFEST), outdated)
            finally:
                take_back(folder)
    except BaseException as error:
        _reraise(error, folder)


def _write_manifest(folder: Path, files: Mapping[str, Mapping[str, Any]], commands: Sequence[str]) -> None:
    content = {"format_version": FORMAT_VERSION, **manifest_header(commands), "files": dict(files)}
    (folder / MANIFEST).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _reraise(error: BaseException, folder: Path) -> None:
    """Raise an error of writing as one that a user understands; any other as it is."""
    text = str(error)
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if full or "os error 28" in text or "os error 27" in text or "No space left" in text:
        raise OutputError(
            f"{folder}: the disk is full, or the file size limit is reached ({text}); nothing was kept. "
            "Make room or choose another `out`."
        ) from error
    if isinstance(error, OSError | safetensors.SafetensorError):
        raise OutputError(f"{folder} cannot be written: {text}. Nothing was kept.") from error
    raise error
