"""Files that more than one process may want and that outlive a crash: locks, whole replacements, flushing, digests."""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pruneport.errors import InUseError, OutputError

__all__ = [
    "beside",
    "check_file",
    "check_free",
    "file_sha256",
    "flush",
    "flush_all",
    "held",
    "made_folder",
    "process_umask",
    "replacing",
    "state_path",
    "write_whole",
]

_WAIT_S = 1.0
"""How long a lock is waited for: longer than anybody holds one who only tidies up or writes one small file."""

_HOLDER = re.compile(r"pid \d+ on [\w.-]+")


def beside(path: Path, suffix: str) -> Path:
    """The hidden path ``.NAME.SUFFIX`` in the same folder."""
    return path.parent / f".{path.name}.{suffix}"


def state_path(out: Path, kind: str) -> Path:
    """The visible path ``OUT.KIND`` in the same folder, where unfinished work towards ``out`` is saved."""
    return out.absolute().with_name(f"{out.name}.{kind}")


@contextmanager
def held(lock: Path, what: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a lock file while the block runs; the system lets go of it where the process dies.

    The file is removed at the end. One that a killed process left is nobody's, and is taken over by the next.

    Args:
        lock: The lock file, in a folder that exists.
        what: What is locked, for the message.
        wait: Give another process a moment to let go of it.

    Raises:
        InUseError: Another process holds it.
        OSError: It cannot be made.
    """
    from filelock import FileLock, SoftFileLock, Timeout  # loading a bundle needs none, and it takes a while to import

    if not lock.parent.is_dir():  # filelock would make it
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(lock.parent))
    file_lock = FileLock(lock, timeout=_WAIT_S if wait else 0)
    try:
        file_lock.acquire()
    except Timeout as error:
        os.close(os.open(lock, os.O_RDWR | os.O_CREAT))  # where none can be made, the system says why
        raise InUseError(
            f"another process ({_holder(lock)}) is at work on {what}; try again when it is done."
        ) from error
    # A file system without locks gets a file whose content and removal are filelock's own.
    native = not isinstance(file_lock, SoftFileLock)
    try:
        if native:
            with suppress(OSError):
                lock.write_text(f"pid {os.getpid()} on {platform.node()}", encoding="utf-8")
        yield
    finally:
        if native:
            # While it is held: whoever has it open already sees that it is gone, and makes a new one. Windows removes
            # no open file; there filelock does, afterwards.
            with suppress(OSError):
                lock.unlink()
        file_lock.release()


def _holder(lock: Path) -> str:
    with suppress(OSError, ValueError):
        holder = lock.read_text(encoding="utf-8")
        if _HOLDER.fullmatch(holder):
            return holder
    return "pid unknown"


def check_free(lock: Path, what: Path) -> None:
    """Ask for a lock without keeping it; a lock file that is not there is not made.

    Raises:
        InUseError: Another process holds it.
    """
    with suppress(OSError):
        if lock.exists():
            with held(lock, what):
                pass


@contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Make a folder, with those around it, for the block; those that are empty at its end go again.

    Raises:
        OSError: It cannot be made.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for path in made:
            with suppress(OSError):  # not empty
                path.rmdir()


def check_file(path: Path, option: str, suffixes: Sequence[str], *, new_folder: bool = False) -> None:
    """Find out whether a file can be written, before anything is done for it; nothing is left there.

    Args:
        path: Where it would go.
        option: Which option says so.
        suffixes: What the file's name may end in.
        new_folder: Whether the folder is made with the file, where it is not there.

    Raises:
        OutputError: It cannot.
    """
    if path.suffix.lower() not in suffixes:
        raise OutputError(f"`{option}` {path}: expected a file ending in {' or '.join(suffixes)}.")
    if not new_folder and not path.parent.is_dir():
        raise OutputError(f"`{option}` {path}: there is no folder {path.parent}; make it first.")
    try:
        if path.is_dir():
            raise OutputError(f"`{option}` {path} is a folder; give a file.")
        with made_folder(path.absolute().parent), held(beside(path, "lock"), path):  # as it will be for writing
            pass
    except (OSError, ValueError) as error:  # ValueError: a null byte
        why = getattr(error, "strerror", None) or error
        raise OutputError(f"`{option}` {path}: nothing can be written there: {why}; give another place.") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside ``path`` to write; it takes its place, whole, when the block ends without an error.

    For one process at a time: see ``held``.
    """
    staging = beside(path, "partial")
    try:
        yield staging
        flush(staging)
        staging.replace(path)
        flush(path.parent)
    finally:
        staging.unlink(missing_ok=True)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file, text as UTF-8, so that it appears whole or not at all, whoever else writes it.

    Raises:
        InUseError: Another process has been writing it all the while.
        OSError: It cannot be written; what was there stays.
    """
    with held(beside(path, "lock"), path), replacing(path) as staging:
        staging.write_bytes(content.encode() if isinstance(content, str) else content)


def flush(path: Path) -> None:
    """Have the system put a file's content, or the names in a folder, on the disk, for the case of a power loss.

    Raises:
        OSError: A file cannot be written out. Of folders not every file system keeps such a promise.
    """
    if path.is_dir():
        if os.name != "nt":  # Windows opens no folders
            with suppress(OSError):
                _synchronise(path, os.O_RDONLY)
    else:
        _synchronise(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)


def flush_all(folder: Path) -> None:
    """Flush everything below a folder, and the folder's own name."""
    for path in (*folder.rglob("*"), folder, folder.parent):
        flush(path)


def _synchronise(path: Path, mode: int) -> None:
    descriptor = os.open(path, mode)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def process_umask() -> int:
    """The permissions that new files of this process do not get; temporary files ignore it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
