"""What is on the disk while a bundle is written, and how it is taken back when that fails or the process is killed.

An update works in a folder inside the bundle:

    .unfinished-update/new/     the files to come
                       saving/  copies of what will go, in old/, and the names of what will be added, in added/
                       undo/    what saving/ is called while files are moved; where it is seen later, they move back
                       done/    what it is called when they are there

A new bundle is filled in ``.NAME.unfinished`` beside its place, and one that it replaces waits in ``.NAME.replaced``
until it is there. Only renames tell one state from the next, so that every one is whole on the disk. Who changes any of
this holds the bundle's lock: ``.lock`` inside it for updates, ``.NAME.lock`` beside it for new ones.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pruneport.errors import InUseError
from pruneport.files import beside, flush, flush_all, held

__all__ = [
    "begin_bundle",
    "begin_update",
    "is_half_moved",
    "move_in",
    "place_lock",
    "put_back",
    "settle",
    "swap_in",
    "take_back",
    "update_lock",
]

_WORK = ".unfinished-update"


def update_lock(folder: Path) -> Path:
    """Held by whoever writes into a bundle."""
    return folder / ".lock"


def place_lock(folder: Path) -> Path:
    """Held by whoever makes a bundle, or replaces it."""
    return beside(folder, "lock")


def settle(folder: Path) -> None:
    """Take back what killed processes left unfinished, a few names looked up where there is nothing to do.

    What a live process has in hand stays, and so does what cannot be written.
    """
    folder = Path(os.path.realpath(folder))
    left = (_staging(folder), _replaced(folder), place_lock(folder))
    if any(os.path.lexists(path) for path in left):
        with suppress(InUseError, OSError), held(place_lock(folder), folder, wait=_is_half_swapped(folder)):
            put_back(folder)
    if any(os.path.lexists(path) for path in (folder / _WORK, update_lock(folder))):
        with suppress(InUseError, OSError), held(update_lock(folder), folder, wait=is_half_moved(folder)):
            take_back(folder)


def begin_update(folder: Path) -> Path:
    """Make the folder in which the files of an update are gathered."""
    _remove_earlier(folder, "")
    staging = folder / _WORK / "new"
    staging.mkdir(parents=True)
    return staging


def move_in(folder: Path, names: Sequence[str], outdated: Sequence[str]) -> None:
    """Remove what is outdated and move the gathered files in; ``take_back`` undoes it, unless it came to its end."""
    work = folder / _WORK
    saving, undo = work / "saving", work / "undo"
    (saving / "old").mkdir(parents=True)
    (saving / "added").mkdir()
    for name in dict.fromkeys((*outdated, *names)):
        if (folder / name).exists():
            _save(folder / name, saving / "old" / name)
        else:
            (saving / "added" / name).touch()
    flush_all(work)
    os.rename(saving, undo)
    flush(work)
    for name in outdated:
        (folder / name).unlink(missing_ok=True)
    for name in names:
        os.replace(work / "new" / name, folder / name)
    flush(folder)
    os.rename(undo, work / "done")
    flush(work)


def _save(path: Path, copy: Path) -> None:
    """Keep a file under a second name."""
    try:
        os.link(path, copy)
    except OSError:  # a file system without hard links
        shutil.copy2(path, copy)


def is_half_moved(folder: Path) -> bool:
    """Whether an update's files are being moved in, or were when its process was killed."""
    return (folder / _WORK / "undo").is_dir()


def take_back(folder: Path) -> None:
    """Undo an update that did not come to its end, and remove what it left.

    Raises:
        OSError: The bundle cannot be written; what is needed to undo it stays.
    """
    work = folder / _WORK
    undo = work / "undo"
    if work.is_symlink():  # not ours: whoever made it would have us move files that lie elsewhere
        work.unlink()
        return
    if undo.is_dir() and not any(path.is_symlink() for path in (undo, undo / "old", undo / "added")):
        for saved in sorted((undo / "old").iterdir()):
            os.replace(saved, folder / saved.name)
        for added in sorted((undo / "added").iterdir()):
            (folder / added.name).unlink(missing_ok=True)
        flush(folder)
        os.rename(undo, work / "done")
    shutil.rmtree(work, ignore_errors=True)


def begin_bundle(folder: Path) -> Path:
    """Make the folder in which a new bundle is filled."""
    _remove_earlier(folder.parent, f".{folder.name}")
    staging = _staging(folder)
    staging.mkdir()
    return staging


def swap_in(folder: Path) -> None:
    """Put the filled folder in the place of ``folder``; ``put_back`` undoes it, unless it came to its end."""
    staging = _staging(folder)
    flush_all(staging)
    if folder.is_dir():
        os.rename(folder, _replaced(folder))
    os.rename(staging, folder)
    flush(folder.parent)


def put_back(folder: Path) -> None:
    """Undo a replacement that did not come to its end, and remove what it, or a bundle half made, left beside.

    Raises:
        OSError: The folder around it cannot be written.
    """
    staging, replaced = _staging(folder), _replaced(folder)
    if _is_half_swapped(folder):
        os.rename(replaced, folder)
        flush(folder.parent)
    shutil.rmtree(staging, ignore_errors=True)
    if replaced.is_dir():
        with suppress(OSError):
            os.rename(replaced, staging)  # half removed, it must not be taken for a bundle to put back
        shutil.rmtree(staging, ignore_errors=True)


def _remove_earlier(folder: Path, name: str) -> None:
    """Remove what pruneport 0.1.0 left where it was killed."""
    earlier = re.compile(rf"{re.escape(name)}\.partial-[a-z0-9_]{{8}}")
    for path in folder.iterdir():
        if earlier.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def _is_half_swapped(folder: Path) -> bool:
    return _replaced(folder).is_dir() and not folder.exists()


def _staging(folder: Path) -> Path:
    return beside(folder, "unfinished")


def _replaced(folder: Path) -> Path:
    return beside(folder, "replaced")
