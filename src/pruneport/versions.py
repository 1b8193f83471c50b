"""Versions of installed libraries, as what is made here records them."""

from __future__ import annotations

import importlib.metadata
from contextlib import suppress

__all__ = ["library_versions"]


def library_versions(*names: str) -> dict[str, str]:
    """Versions by the names of distributions; those that are not installed are left out."""
    versions = {}
    for name in names:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions
