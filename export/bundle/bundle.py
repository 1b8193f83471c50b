"""The bundle: a folder that holds a compressed network and everything needed to trust it.

It appears whole or not at all, and changes wholly or not at all, one process at a time; see ``unfinished``.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import safetensors

from pruneport.compress.surgery.plan import Plan, parse_plan
from pruneport.documents import Count, fit_document, load_document, read_start
from pruneport.errors import BundleError, OutputError
from pruneport.export.bundle.manifest import manifest_header
from pruneport.export.bundle.unfinished import (
    begin_bundle,
    begin_update,
    is_half_moved,
    move_in,
    place_lock,
    put_back,
    settle,
    swap_in,
    take_back,
    update_lock,
)
from pruneport.files import check_free, file_sha256, held, made_folder

__all__ = [
    "BENCH",
    "DENSE_ONNX",
    "MODEL_ONNX",
    "PLAN",
    "PREPROCESSOR",
    "REPORT",
    "TRAINING",
    "VERIFY",
    "WEIGHTS",
    "Bundle",
    "check_hashes",
    "check_output",
    "is_bundle",
    "new_bundle",
    "open_bundle",
    "plan_hash",
    "update_bundle",
]

PLAN, WEIGHTS, MANIFEST = "plan.json", "weights.safetensors", "manifest.json"
PREPROCESSOR = "preprocessor.json"
MODEL_ONNX, DENSE_ONNX = "model.onnx", "dense.onnx"
VERIFY, BENCH, REPORT, TRAINING = "verify.json", "bench.json", "report.html", "training.json"
_FORMAT_VERSION = 1
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class _Manifest(msgspec.Struct):
    """What is read of manifest.json; each file's entry is looked at once its name is known to be one."""

    files: Annotated[dict[str, Any], msgspec.Meta(max_length=1000)]
    commands: tuple[str, ...] = ()


class _FileEntry(msgspec.Struct, forbid_unknown_fields=True):
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    bytes: Count


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """An opened bundle: its folder, its plan, and what the manifest says of its files."""

    folder: Path
    plan: Plan
    files: Mapping[str, Mapping[str, Any]]
    commands: tuple[str, ...] = ()

    def path(self, name: str) -> Path:
        """Path of one of its files, which is what the manifest says.

        Raises:
            BundleError: The bundle has no such file yet, or it was changed.
        """
        if name not in self.files:
            raise BundleError(f"{self.folder} has no {name}; make it with: pruneport export {self.folder}")
        _check(self.folder, self.files, (name,))
        return self.folder / name


def check_output(folder: Path, overwrite: bool) -> None:
    """Refuse an output folder that cannot become the bundle, before any work is done.

    Raises:
        OutputError: It is taken, is no bundle to overwrite, or it or its parent cannot be written.
        InUseError: Another process is at work on it.
    """
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
                _write_manifest(staging, {path.name: _entry(path) for path in sorted(staging.iterdir())}, [command])
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
            now = _read(folder)
            if (now.files, now.commands) != (bundle.files, bundle.commands):
                raise BundleError(f"{folder} was changed by another process meanwhile; nothing was kept. Try again.")
            try:
                staging = begin_update(folder)
                yield staging
                fresh = {path.name: _entry(path) for path in sorted(staging.iterdir())}
                lasting = {name: entry for name, entry in bundle.files.items() if name not in outdated}
                _write_manifest(staging, {**lasting, **fresh}, [*bundle.commands, command])
                move_in(folder, (*fresh, MANIFEST), outdated)
            finally:
                take_back(folder)
    except BaseException as error:
        _reraise(error, folder)


def is_bundle(folder: Path) -> bool:
    """Whether there is a bundle, sound or not."""
    settle(folder)
    return (folder / MANIFEST).is_file()


def open_bundle(folder: Path) -> Bundle:
    """Read manifest and plan, and check both and the weights against the manifest's hashes.

    What a killed process left of a write is taken back first, where the folder can be written.

    Raises:
        BundleError: No bundle there, a changed or missing file, a path outside the folder, a newer format.
    """
    settle(folder)
    return _read(folder)


def _read(folder: Path) -> Bundle:
    """Read manifest and plan, once plan and weights are known to be those of the manifest."""
    if not folder.is_dir():
        raise BundleError(f"no bundle at {folder}; expected a folder written by pruneport ship or compress.")
    if not (folder / MANIFEST).is_file():
        raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST}.")
    files, commands = _read_manifest(folder)
    _check(folder, files, (PLAN, WEIGHTS))
    plan = parse_plan(read_start(folder / PLAN), _shapes(folder / WEIGHTS))
    return Bundle(folder=folder, plan=plan, files=files, commands=commands)


def check_hashes(bundle: Bundle) -> str:
    """Check every file against the manifest; return a sentence that says so.

    Raises:
        BundleError: Names every missing and changed file.
    """
    _check(bundle.folder, bundle.files, tuple(bundle.files))
    return f"{len(bundle.files)} files match the manifest"


def plan_hash(folder: Path) -> str:
    """The sha256 of plan.json, which also stands inside the ONNX files."""
    return str(_entry(folder / PLAN)["sha256"])


def _read_manifest(folder: Path) -> tuple[dict[str, Mapping[str, Any]], tuple[str, ...]]:
    """What the manifest says of every file, and the command lines."""
    name, advice = f"{folder / MANIFEST} is not a manifest", "Fetch the bundle again."
    manifest = fit_document(
        load_document(read_start(folder / MANIFEST), (_FORMAT_VERSION,), name, advice), _Manifest, name, advice
    )
    for file in manifest.files:
        if not _FILE_NAME.fullmatch(file) or not _inside(folder, file):
            raise BundleError(f"{folder / MANIFEST} names {file!r}, which lies outside the bundle; do not use it.")
    for file, entry in manifest.files.items():
        fit_document(entry, _FileEntry, f"{name}: of {file} it should say hash and size", advice)
    return manifest.files, manifest.commands


def _inside(folder: Path, name: str) -> bool:
    """Whether a file of the folder lies there, and not elsewhere through a link; links in a ring do not."""
    return Path(os.path.realpath(folder / name)).parent == Path(os.path.realpath(folder))


def _shapes(weights: Path) -> dict[str, list[int]]:
    """Shapes of the tensors in a file, of which no more than the header is read."""
    try:
        with safetensors.safe_open(weights, framework="numpy") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise BundleError(f"{weights} is not a file of weights: {error}. Fetch the bundle again.") from error


def _check(folder: Path, files: Mapping[str, Mapping[str, Any]], names: tuple[str, ...]) -> None:
    """Raise where one of the named files is not the one in the manifest."""
    faults = []
    for name in names:
        if name not in files:
            faults.append(f"{name} is not in the manifest")
        elif not (folder / name).is_file():
            faults.append(f"{name} is missing")
        elif _entry(folder / name) != files[name]:
            faults.append(f"{name} was changed")
    if faults:
        help = "Fetch the bundle again, or make it anew."
        if is_half_moved(folder):
            help = "A process was killed while it changed the bundle; make the folder writable and open it once more."
        raise BundleError(f"{folder} does not match its manifest: {'; '.join(faults)}. {help}")


def _entry(path: Path) -> dict[str, Any]:
    return {"sha256": file_sha256(path), "bytes": path.stat().st_size}


def _write_manifest(folder: Path, files: Mapping[str, Mapping[str, Any]], commands: Sequence[str]) -> None:
    content = {"format_version": _FORMAT_VERSION, **manifest_header(commands), "files": dict(files)}
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
