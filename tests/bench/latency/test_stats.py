from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruneport.bench.latency.stats import paired_speedup, summarise
from pruneport.errors import InputError

latencies = st.lists(st.floats(0.01, 1000), min_size=2, max_size=40)


def _rounds(
    seed: int, rounds: int, ratio: float, shared: float = 0.5, own: float = 0.02
) -> tuple[list[float], list[float]]:
    """Rounds that are slow together (a busy machine), much more than each sample has noise of its own."""
    generator = np.random.default_rng(seed)
    busy = generator.lognormal(0, shared, rounds)
    dense = ratio * busy * generator.lognormal(0, own, rounds)
    return dense.tolist(), (busy * generator.lognormal(0, own, rounds)).tolist()


@given(latencies)
def test_percentiles_are_ordered_and_by_definition(samples_ms: list[float]) -> None:
    summary = summarise(samples_ms)
    assert min(samples_ms) <= summary.p50_ms <= summary.p90_ms <= summary.p99_ms <= max(samples_ms)
    ordered = sorted(samples_ms)
    for value, q in ((summary.p50_ms, 0.5), (summary.p90_ms, 0.9), (summary.p99_ms, 0.99)):
        position = q * (len(ordered) - 1)
        below = int(position)
        above = min(below + 1, len(ordered) - 1)
        expected = ordered[below] + (position - below) * (ordered[above] - ordered[below])
        assert value == pytest.approx(expected)
    assert summary.mean_ms == pytest.approx(sum(samples_ms) / len(samples_ms))


def test_no_samples_are_refused() -> None:
    with pytest.raises(InputError, match="at least one sample"):
        summarise([])


@pytest.mark.parametrize("confidence", [0.8, 0.95])
@pytest.mark.parametrize("rounds", [5, 60, 3000])
def test_interval_is_that_of_resamples_drawn_one_by_one(rounds: int, confidence: float) -> None:
    dense_ms, pruned_ms = (np.array(samples) for samples in _rounds(seed=3, rounds=rounds, ratio=1.7))
    generator = np.random.default_rng(4)
    ratios = []
    for _ in range(500):
        drawn = generator.integers(rounds, size=rounds)
        ratios.append(np.median(dense_ms[drawn]) / np.median(pruned_ms[drawn]))
    speedup = paired_speedup(dense_ms.tolist(), pruned_ms.tolist(), confidence=confidence, resamples=500, seed=4)
    assert speedup.ratio == pytest.approx(np.median(dense_ms) / np.median(pruned_ms))
    assert speedup.low == pytest.approx(np.quantile(ratios, (1 - confidence) / 2))
    assert speedup.high == pytest.approx(np.quantile(ratios, (1 + confidence) / 2))
    assert speedup.confidence == confidence


def test_interval_covers_the_true_ratio_as_often_as_it_says() -> None:
    intervals = [
        paired_speedup(*_rounds(seed, 41, 1.3, shared=0.05, own=0.2), confidence=0.9, resamples=300)
        for seed in range(200)
    ]
    covered = np.mean([interval.low <= 1.3 <= interval.high for interval in intervals])
    # Three standard errors of a 0.9 proportion of 200 are 0.064.
    assert 0.83 <= covered <= 0.97


def test_pairs_stay_together() -> None:
    dense_ms, pruned_ms = _rounds(seed=5, rounds=40, ratio=1.5)
    shuffled_ms = np.random.default_rng(0).permutation(pruned_ms).tolist()
    paired, broken = paired_speedup(dense_ms, pruned_ms), paired_speedup(dense_ms, shuffled_ms)
    assert paired.ratio == broken.ratio
    assert paired.high - paired.low < (broken.high - broken.low) / 3


@given(latencies, st.floats(0.1, 10))
def test_a_constant_ratio_leaves_no_doubt(pruned_ms: list[float], ratio: float) -> None:
    speedup = paired_speedup([ratio * value for value in pruned_ms], pruned_ms, resamples=20)
    assert (speedup.low, speedup.ratio, speedup.high) == pytest.approx((ratio, ratio, ratio))


def test_same_samples_give_the_same_interval() -> None:
    rounds = _rounds(seed=1, rounds=20, ratio=2)
    assert paired_speedup(*rounds, resamples=7) == paired_speedup(*rounds, resamples=7)
    assert paired_speedup(*rounds, resamples=7) != paired_speedup(*rounds, resamples=7, seed=1)


def test_a_higher_level_gives_a_wider_interval() -> None:
    rounds = _rounds(seed=2, rounds=30, ratio=2)
    narrow, wide = paired_speedup(*rounds, confidence=0.5), paired_speedup(*rounds, confidence=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize(("dense_ms", "pruned_ms"), [([1.0], [1.0]), ([1.0, 2.0], [1.0]), ([], [])])
def test_too_few_or_unequal_samples_are_refused(dense_ms: list[float], pruned_ms: list[float]) -> None:
    with pytest.raises(InputError, match=f"got {len(dense_ms)} dense and {len(pruned_ms)} pruned"):
        paired_speedup(dense_ms, pruned_ms)


@pytest.mark.parametrize("confidence", [0, 1, 1.5, -0.1, float("nan")])
def test_a_level_outside_0_to_1_is_refused(confidence: float) -> None:
    with pytest.raises(InputError, match=r"inside \(0, 1\).*got"):
        paired_speedup([1.0, 2.0], [1.0, 2.0], confidence=confidence)


def test_samples_of_a_round_are_drawn_together() -> None:
    """Runs of a block are alike, so many of them say no more than one."""
    generator = np.random.default_rng(0)
    dense, pruned = 4 + generator.random(20), 2 + generator.random(20)
    alone = paired_speedup(dense.tolist(), pruned.tolist())
    blocks = paired_speedup(np.repeat(dense, 9).tolist(), np.repeat(pruned, 9).tolist(), block=9)
    assert (blocks.ratio, blocks.low, blocks.high) == pytest.approx((alone.ratio, alone.low, alone.high))
    apart = paired_speedup(np.repeat(dense, 9).tolist(), np.repeat(pruned, 9).tolist())
    assert apart.high - apart.low < (blocks.high - blocks.low) / 2
    with pytest.raises(InputError, match="at least 2 rounds that timed both networks 9 times; got 19 dense"):
        paired_speedup([1.0] * 19, [1.0] * 19, block=9)
