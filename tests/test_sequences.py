"""What lies in an order, taken evenly."""

from __future__ import annotations

import pytest

from pruneport.sequences import evenly


def test_each_equal_run_gives_its_first() -> None:
    assert evenly("aabbcc", 3) == ["a", "b", "c"]
    assert evenly(range(1, 12, 2), 4) == [1, 3, 7, 9]


@pytest.mark.parametrize("count", [0, 1, 6, 7])
def test_as_many_as_asked_none_twice_and_in_order(count: int) -> None:
    taken = evenly(range(7), count)
    assert len(taken) == count
    assert taken == sorted(set(taken))
