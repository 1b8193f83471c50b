"""Image files: found below a folder, and decoded.

An image is what a viewer shows: turned as its EXIF orientation says, in every format; of an animation the first frame;
transparency is left out.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from pruneport.errors import ImageFolderError
from pruneport.models.files import not_a_file
from pruneport.text import can_be_shown, escaped

__all__ = ["PIXELS", "check_name", "decode", "find_images"]

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}
_NOT_OURS = ("__MACOSX", "@eaDir")  # what archives of macOS and network drives keep beside the files
# Files are told by their content, whatever their suffix. Not Pillow's others: EPS would start Ghostscript.
_FORMATS = ("BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_BYTES = 2**30
PIXELS = 178_956_970
"""The largest image: where Pillow, too, speaks of a decompression bomb."""
_ORIENTATION = 0x0112  # EXIF 2.32, tag 274
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def find_images(folder: Path) -> tuple[list[str], list[Path]]:
    """The class folders' names and all image files below ``folder``, both sorted.

    Hidden files and folders, and what macOS packs beside them, are left out. Links to folders are followed.

    Raises:
        ImageFolderError: No such folder, no images in it, a folder that is met twice, or a name that cannot be shown.
    """
    if not folder.is_dir():
        raise ImageFolderError(f"no image folder {folder}; expected FOLDER/CLASS/IMAGE, or a flat folder of images.")
    classes: list[str] = []
    found: list[Path] = []
    met: set[str] = set()
    waiting = [folder]
    try:
        while waiting:
            place = waiting.pop()
            _meet(place, folder, met)
            with os.scandir(place) as entries:
                for entry in entries:
                    if entry.name.startswith(".") or entry.name in _NOT_OURS:
                        continue
                    if os.path.isdir(entry.path):
                        waiting.append(place / entry.name)
                        if place == folder:
                            classes.append(entry.name)
                    elif os.path.splitext(entry.name)[1].lower() in _SUFFIXES:
                        found.append(place / entry.name)
    except OSError as error:
        raise ImageFolderError(
            f"{error.filename} cannot be listed ({error.strerror}); check its permissions."
        ) from error
    if not found:
        raise ImageFolderError(f"no images in {folder}; expected files ending in {', '.join(sorted(_SUFFIXES))}.")
    for place in (folder, *(folder / name for name in classes)):
        check_name(place)
    return sorted(classes), sorted(found)


def check_name(folder: Path) -> None:
    """Check the name of a folder that is written into records and reports.

    Raises:
        ImageFolderError: It is not UTF-8, or has control characters.
    """
    if not can_be_shown(folder.name):
        raise ImageFolderError(
            f"the name of {escaped(str(folder))} is not UTF-8, or has control characters; rename that folder."
        )


def _meet(place: Path, folder: Path, met: set[str]) -> None:
    """Note a folder that is listed, by where it really is: links could make a ring of folders, or count one twice."""
    real = os.path.realpath(place)
    if real in met or (place != folder and Path(os.path.realpath(folder)).is_relative_to(real)):
        raise ImageFolderError(f"{place} is, or leads to, a folder whose images are counted already; remove that link.")
    met.add(real)


def decode(path: Path, mode: str) -> Image.Image:
    """The image as a viewer shows it, in Pillow's ``mode``.

    Raises:
        ImageFolderError: It is no image, or one that cannot be used; the message says why.
    """
    try:
        return _decoded(path, mode)
    except ImageFolderError:
        raise
    except Exception as error:  # of a damaged file Pillow raises whatever its reader met
        reason = "not an image of a known format" if isinstance(error, UnidentifiedImageError) else error
        raise ImageFolderError(
            f"image {path} cannot be read ({str(reason) or type(error).__name__}); remove it from {path.parent} or "
            "replace it."
        ) from error


def _decoded(path: Path, mode: str) -> Image.Image:
    """The image in the given mode, turned as its EXIF orientation says."""
    if found := not_a_file(path):
        raise ImageFolderError(f"image {path} {found}; expected a file. Remove it from {path.parent} or replace it.")
    if path.stat().st_size > _BYTES:
        raise ImageFolderError(f"image {path} is larger than 1 GiB; remove it from {path.parent} or make it smaller.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of large images, palettes and EXIF: on a terminal they help nobody
        with Image.open(path, formats=_FORMATS) as opened:
            if opened.mode.startswith(("I", "F")):
                raise ImageFolderError(
                    f"image {path} has more than 8 bits a channel (mode {opened.mode}); convert it to 8 bits."
                )
            opened.load()
            turn = _TURNS.get(_orientation(opened))
            image = opened if opened.mode == mode else opened.convert(mode)
        return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """What a loaded image's EXIF says of it; Pillow has turned TIFF already, and says 1 of it."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged metadata of an undamaged image: viewers pass over it
        return 1
