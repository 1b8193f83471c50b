"""Memory: what a file asks for beyond what the machine has is an error, not the end of the process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

__all__ = ["within_free_memory"]

_LEAST_BYTES = 2**30
_STATUS = Path("/proc/self/status")


@contextmanager
def within_free_memory() -> Iterator[None]:
    """Let this process allocate no more than is free as the block begins; on systems other than Linux, as it likes.

    Linux promises memory that is not there, and ends the process that then uses it. Within the block a larger request
    fails at once, which libraries report.
    """
    used = _used_bytes()
    if used is None:
        yield
        return
    import resource  # not on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    free = psutil.virtual_memory().available + psutil.swap_memory().free
    limits = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min([*limits, used + max(_LEAST_BYTES, free)]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _used_bytes() -> int | None:
    """What counts against the limit already."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:")), None)
