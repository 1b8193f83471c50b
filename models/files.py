"""Files that users name: what stands in the way of reading one, found before it is opened."""

from __future__ import annotations

import stat
from pathlib import Path

__all__ = ["not_a_file"]

_KINDS = {
    stat.S_IFDIR: "is a folder",
    stat.S_IFIFO: "is a named pipe",
    stat.S_IFSOCK: "is a socket",
    stat.S_IFCHR: "is a device",
    stat.S_IFBLK: "is a device",
}


def not_a_file(path: Path) -> str | None:
    """What ``path`` is in place of a file that can be read to its end; None of such a file, or a link to one.

    Opening a named pipe waits for its writer, and some devices never end.

    Example:
        >>> not_a_file(Path("/dev/zero"))
        'is a device'
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "is a link to nothing" if path.is_symlink() else "does not exist"
    except (OSError, ValueError) as error:  # a link to itself, no permission, a name too long, or with a null byte
        return f"cannot be opened ({getattr(error, 'strerror', None) or error})"
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "is no file")
