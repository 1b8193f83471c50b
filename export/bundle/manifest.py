"""What the manifest says beside the files: who made the bundle, with what, on what."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from datetime import UTC, datetime

from pruneport.versions import library_versions

__all__ = ["manifest_header"]


def manifest_header(commands: Sequence[str]) -> dict[str, object]:
    """Return the command lines that made the bundle, in order, the time, the versions and the machine."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commands": list(commands),
        "versions": {
            **library_versions("pruneport", "torch", "onnx"),
            "python": platform.python_version(),
        },
        "machine": {"system": platform.platform(), "processor": platform.machine()},
    }
