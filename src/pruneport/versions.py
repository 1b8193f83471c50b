"""Versions of installed libraries, as what is made here records them."""

from __future__ import annotations

import functools
import importlib.metadata

__all__ = ["library_versions"]


def library_versions(*names: str) -> dict[str, str]:
    """Versions by the names of distributions; those that are not installed are left out."""
    return {name: version for name in names if (version := _version(name)) is not None}


@functools.cache
def _version(name: str) -> str | None:
    """Finding it means looking through everything installed, so once a process."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
