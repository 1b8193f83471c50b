"""A machine that others use may be too noisy for a latency target; the verb then says so, and a test cannot go on."""

from __future__ import annotations

import pytest

__all__ = ["skip_if_noisy", "told_noise"]

_TOLD = "the timer is too noisy to tell whether the latency target is met"


def told_noise(said: str) -> str:
    """From where a message says that the timer could not tell; empty where it does not."""
    words = " ".join(said.split())
    return words[words.index(_TOLD) :] if _TOLD in words else ""


def skip_if_noisy(code: int, error: str) -> None:
    """Skip the test where a verb, or a point of a sweep, ended because its timer could not tell; else go on."""
    if code != 0 and (told := told_noise(error)):
        pytest.skip(told)
