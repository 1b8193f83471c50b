"""Memory: how much may be used, in all and by activations; which errors say that it ran out; what is freed kept."""

from __future__ import annotations

import ctypes
import math
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.multiprocessing.spawn import ProcessRaisedException

__all__ = ["freed_memory_kept", "memory_bounded", "ran_out_of_memory", "room_on"]

_SHARE = 0.5  # of what is free; passes and solves need the rest
_CONTROL_GROUPS = Path("/sys/fs/cgroup")
_LIMITS = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))  # version 2 and 1
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # of glibc's malloc.h
_MOST_MMAP_THRESHOLD, _MOST_MMAPS = 32 * 2**20, 65_536  # what glibc's own thresholds rise to, and its default
_GIB = 2**30
# Not every backend raises torch.OutOfMemoryError, and cuBLAS and cuDNN say in their own words what they cannot have.
_NO_MEMORY = re.compile(r"out of memory|ALLOC(ATION)?_FAILED")
_MOST: ContextVar[float] = ContextVar("bytes that may be used", default=math.inf)


@contextmanager
def memory_bounded(most_gib: float | None, device: torch.device) -> Iterator[None]:
    """Use no more than so much memory of a device.

    What is kept for later stays below, and waits in files beyond. Where torch's allocator has a bound of its own, as on
    CUDA and XPU, it holds for everything, and a batch that does not fit raises ``torch.OutOfMemoryError``.

    Args:
        most_gib: GiB; on the CPU of the whole process. None: all that is free.
        device: Whose memory.
    """
    if most_gib is None:
        yield
        return
    token = _MOST.set(min(_MOST.get(), most_gib * _GIB))
    try:
        with _allocator_bounded(most_gib * _GIB, device):
            yield
    finally:
        _MOST.reset(token)


@contextmanager
def _allocator_bounded(most: float, device: torch.device) -> Iterator[None]:
    """Let torch's allocator of a device refuse what is beyond so many bytes, where it can."""
    allocator: Any = None if device.type == "cpu" else torch.get_device_module(device)
    if not hasattr(allocator, "get_per_process_memory_fraction"):
        yield
        return
    before = allocator.get_per_process_memory_fraction(device.index)  # of a device without an index it is refused
    _, total = torch.accelerator.get_memory_info(device)
    allocator.set_per_process_memory_fraction(min(before, most / total), device.index)
    try:
        yield
    finally:
        allocator.set_per_process_memory_fraction(before, device.index)


def room_on(device: torch.device) -> float:
    """Bytes of a device in which things may be kept; none where nothing says how many are free."""
    most = _MOST.get()
    if device.type == "cpu":
        free = _free_bytes()
        if most < math.inf:
            free = min(free, most - psutil.Process().memory_info().rss)
        return _SHARE * max(free, 0)
    if not torch.accelerator.is_available():
        return 0
    try:
        free, _ = torch.accelerator.get_memory_info(device)
        allocated = torch.accelerator.memory_allocated(device)
        unused = torch.accelerator.memory_reserved(device) - allocated
    except (NotImplementedError, RuntimeError):  # not all backends count
        return 0
    return _SHARE * max(min(free + unused, most - allocated), 0)


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the accelerator's memory does not hold what was asked of it."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError | ProcessRaisedException) and _NO_MEMORY.search(str(error)) is not None
    )


def _free_bytes() -> float:
    """Of main memory, or of what a container leaves of it: who takes more there is ended."""
    free = float(psutil.virtual_memory().available)
    for folder in _control_groups():
        for limit, used in _LIMITS:
            try:
                free = min(free, int((folder / limit).read_text()) - int((folder / used).read_text()))
            except (OSError, ValueError):  # there is none, or it is "max"
                continue
    return max(free, 0)


def _control_groups() -> Iterator[Path]:
    """The folders of this process's control groups, and of those that these are in."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, kinds, place = line.split(":", 2)
        if kinds not in ("", "memory"):
            continue
        folder = _CONTROL_GROUPS / kinds / place.lstrip("/")
        yield from (parent for parent in (folder, *folder.parents) if parent.is_relative_to(_CONTROL_GROUPS))


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep freed main memory for what is allocated next; it is given back at the end. Nothing changes but the time.

    glibc asks the system for every block above 32 MB and gives it back when it is freed, so that each activation is
    written to pages that the system must first find and clear: a third of the CPU time of compressing a MobileNetV2.
    Other C libraries do as they like.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library is None or not hasattr(library, "gnu_get_libc_version"):
        yield
        return
    library.mallopt(_MMAP_MAX, 0)
    library.mallopt(_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:  # the thresholds that glibc itself comes to; it no longer moves them once they are set
        library.mallopt(_MMAP_THRESHOLD, _MOST_MMAP_THRESHOLD)
        library.mallopt(_TRIM_THRESHOLD, 2 * _MOST_MMAP_THRESHOLD)
        library.mallopt(_MMAP_MAX, _MOST_MMAPS)
        library.malloc_trim(ctypes.c_size_t(0))
