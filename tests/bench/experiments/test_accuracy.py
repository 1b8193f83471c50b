"""Which ImageNet samples calibrate, and which are tested."""

from __future__ import annotations

import pytest

from pruneport.bench.experiments.accuracy import calibrating_classes


@pytest.mark.parametrize("count", [128, 250, 256, 500])
def test_calibrating_classes_are_from_the_whole_order(count: int) -> None:
    """ImageNet's classes are sorted by what they are: animals first."""
    chosen = calibrating_classes(1000, count)
    assert len({*chosen}) == count
    assert all(place % 2 for place in chosen)
    for start in range(0, 1000, 250):
        assert len({*chosen} & {*range(start, start + 250)}) == pytest.approx(count / 4, abs=1)
