"""Memory: what is free of it, and freed memory that is used again."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from pruneport.compress.activations import memory
from pruneport.compress.activations.memory import memory_bounded, room_on

_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
_TAKEN = """
import contextlib, psutil, torch
from pruneport.compress.activations.memory import freed_memory_kept

def taken():
    for made in range(8):
        torch.ones(2**24 - made * 2**18)  # 64 MB, which glibc by itself gives back when it is freed
    return psutil.Process().memory_info().rss

for error in (False, True):
    alone = taken()
    with contextlib.suppress(ZeroDivisionError), freed_memory_kept():
        within = taken()
        1 / (not error)
    print(alone, within, psutil.Process().memory_info().rss)
"""


@pytest.mark.slow
@_glibc
def test_freed_memory_is_used_again_and_given_back_at_the_end_and_after_an_error() -> None:
    """By what a process of its own holds after it has made and freed eight tensors, one after the other.

    Each is a little smaller than the last: where another of the same size was, glibc before 2.38 has no room for an
    aligned one if something small came behind.
    """
    ran = subprocess.run([sys.executable, "-c", _TAKEN], capture_output=True, text=True, check=True)
    (before, _, _), *_ = held = [[int(size) for size in line.split()] for line in ran.stdout.splitlines()]
    for _, within, after in held:
        assert before + 2**25 < within < before + 3 * 2**26  # of the eight, one or two at most are held
        assert after < before + 2**25


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
