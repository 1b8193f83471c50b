"""Intervals against another implementation, against published figures, and against what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from pruneport.export.card.intervals import change_interval, change_p_value, paired_change, share_interval


@pytest.mark.parametrize(("count", "images"), [(0, 10), (10, 10), (81, 263), (250, 251), (1, 1)])
def test_a_share_has_wilsons_interval(count: int, images: int) -> None:
    expected = binomtest(count, images).proportion_ci(method="wilson")
    assert share_interval(count, images) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((38, 48, 2, 50), (0.0569, 0.3404)),  # Newcombe 1998, table III, method 10: 36, 12, 2 and 0 of 50
        ((2, 8, 1, 21), (0.0256, 0.5069)),  # Fagerland et al. 2014, airway responsiveness: 1, 1, 7 and 12 of 21
    ],
)
def test_a_change_has_the_published_interval(counts: tuple[int, int, int, int], expected: tuple[float, float]) -> None:
    assert paired_change(*counts) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("shares", [(0.85, 0.05, 0.04, 0.06), (0.5, 0.3, 0.02, 0.18), (0.97, 0.01, 0.01, 0.01)])
def test_a_change_is_covered_as_often_as_it_says(shares: tuple[float, ...]) -> None:
    generator = np.random.default_rng(0)
    true, hits, draws = shares[2] - shares[1], 0, 1000
    for both, lost, won, _ in generator.multinomial(500, shares, size=draws):
        interval = paired_change(int(both + lost), int(both + won), int(lost), 500)
        hits += interval.low <= true <= interval.high
    assert hits / draws == pytest.approx(0.955, abs=0.02)


def test_pairing_narrows_the_interval() -> None:
    paired = paired_change(460, 450, 15, 500)
    alone = paired_change(460, 450, 460 - 414, 500)  # as many agree as would by chance
    assert paired.high - paired.low < 0.7 * (alone.high - alone.low)


def test_nothing_is_known_of_no_images() -> None:
    assert share_interval(0, 0) == (0, 1)
    assert paired_change(0, 0, 0, 0) == (-1, 1)
    assert paired_change(5, 5, 0, 5).low > -0.6  # nothing differs, and five images say little


def test_the_change_of_a_record() -> None:
    record = {"images": 50, "dense_torch": 0.76, "pruned_onnx": 0.96, "only_dense": 2, "only_pruned": 12}
    assert change_interval(record) == pytest.approx((0.0569, 0.3404), abs=5e-5)
    assert change_interval(record | {"dense_torch": None}) is None
    assert change_interval({"images": 50, "dense_torch": 0.9, "pruned_onnx": 0.9}) is None  # of an earlier version


def test_a_change_has_mcnemars_exact_p_value() -> None:
    """Twice the chance of ten or more heads in twelve throws: 2 (66 + 12 + 1) / 2^12."""
    assert change_p_value({"only_dense": 10, "only_pruned": 2}) == pytest.approx(2 * 79 / 4096)
    assert change_p_value({"only_dense": 2, "only_pruned": 10}) == pytest.approx(2 * 79 / 4096)
    assert (
        change_p_value({"only_dense": 5, "only_pruned": 5}) == change_p_value({"only_dense": 0, "only_pruned": 0}) == 1
    )
    assert change_p_value({"only_dense": None, "only_pruned": None}) is None
