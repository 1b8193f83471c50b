"""Memory: what is free of it, and freed memory that is used again."""

from __future__ import annotations

import contextlib
import platform
import resource
from pathlib import Path

import psutil
import pytest
import torch

from pruneport.compress.activations import memory
from pruneport.compress.activations.memory import freed_memory_kept, memory_bounded, room_on

_ELEMENTS = 16 * 2**20  # 64 MB, which glibc by itself gives back when it is freed
_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")


def _pages_taken() -> int:
    """How many pages the system finds and clears while tensors are made and freed, each a little smaller than the last.

    Where another of the same size was, glibc before 2.38 has no room for an aligned one if something small came behind.
    """
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for made in range(8):
        torch.ones(_ELEMENTS - made * _ELEMENTS // 64)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@_glibc
@pytest.mark.parametrize("error", [False, True])
def test_freed_memory_is_used_again_and_given_back_at_the_end(error: bool) -> None:
    alone = _pages_taken()
    with contextlib.suppress(ZeroDivisionError), freed_memory_kept():
        kept = _pages_taken()
        within = psutil.Process().memory_info().rss
        _ = 1 / (not error)
    assert kept < alone / 3
    assert psutil.Process().memory_info().rss < within - 2 * _ELEMENTS


def test_half_of_free_memory_has_room_for_activations() -> None:
    half = psutil.virtual_memory().available / 2
    assert 0.5 * half < room_on(torch.device("cpu")) < 1.5 * half


def test_a_bound_is_of_what_the_process_has() -> None:
    cpu, has = torch.device("cpu"), psutil.Process().memory_info().rss
    with memory_bounded((has + 2**26) / 2**30, cpu):
        assert 0 < room_on(cpu) < 2**26
    with memory_bounded(2**-10, cpu):
        assert room_on(cpu) == 0


@pytest.mark.parametrize(
    ("limit", "used"), [("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")]
)
@pytest.mark.skipif(not Path("/proc/self/cgroup").exists(), reason="control groups are Linux's")
def test_a_container_has_less(limit: str, used: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_CONTROL_GROUPS", tmp_path)
    free = room_on(torch.device("cpu"))
    (tmp_path / limit).write_text("max\n")
    (tmp_path / used).write_text("1000000\n")
    assert room_on(torch.device("cpu")) == pytest.approx(free, rel=0.5)
    (tmp_path / limit).write_text("5000000\n")
    assert room_on(torch.device("cpu")) == 2_000_000
    (tmp_path / used).write_text("6000000\n")
    assert room_on(torch.device("cpu")) == 0
