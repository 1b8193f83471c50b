"""Versions of libraries, as they are recorded."""

from __future__ import annotations

import importlib.metadata

from pruneport.versions import library_versions


def test_versions_leave_out_what_is_not_installed() -> None:
    assert library_versions("torch", "no-such-library") == {"torch": importlib.metadata.version("torch")}
