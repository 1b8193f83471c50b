"""Latency models: timings of a known staircase recover it, and the knapsack solves by them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruneport.arrays import FloatArray
from pruneport.compress.allocation.forms import LayerShares
from pruneport.compress.allocation.knapsack import solve_knapsack
from pruneport.compress.allocation.latency_model import LatencyForm, LatencyModel, Timing, fit_latency

DENSE = np.array([64.0, 128.0, 96.0, 40.0])
STEP = 16


def chain(groups: int) -> LayerShares:
    """Layers between groups that follow each other; the first reads the image, the last is read by fixed outputs."""
    fixed = groups
    return LayerShares(
        macs=np.array([5.0, 20.0, 40.0, 30.0, 1.0][: groups + 1]),
        first=np.arange(groups + 1),
        second=np.array([fixed, *range(groups)]),
        start=np.append(np.zeros(groups), 1.0),
        slope=np.vstack([np.diag(1 / DENSE[:groups]), np.zeros(groups)]),
    )


def truth(kept: FloatArray) -> float:
    """A device that counts in steps of 16, and takes most of its time for reading and writing."""
    f = np.ceil(kept / STEP) / np.ceil(DENSE / STEP)
    return float(0.1 + 0.3 * f[0] + 0.2 * f[0] * f[1] + 0.15 * f[1] * f[2] + 0.1 * f[2] * f[3] + 0.15 * f[3])


def draw(count: int, seed: int, step: int) -> list[FloatArray]:
    generator = np.random.default_rng(seed)
    widths = [np.arange(step, width + 1, step, dtype=float) for width in DENSE]
    return [np.array([generator.choice(choices) for choices in widths]) for _ in range(count)]


def fit(noise: float, step: float = STEP) -> LatencyModel:
    form = LatencyForm(chain(4), DENSE, np.full(4, float(step)))
    generator = np.random.default_rng(0)
    timings = [
        Timing(kept=kept, share=truth(kept) / truth(DENSE) * (1 + noise * generator.standard_normal()))
        for kept in draw(24, 1, 8)
    ]
    return fit_latency(form, timings)


@pytest.mark.parametrize(("noise", "error"), [(0.0, 0.01), (0.01, 0.02)])
def test_a_known_staircase_is_recovered(noise: float, error: float) -> None:
    model = fit(noise)
    unseen = draw(50, 2, 1)
    errors = [abs(model.of(kept) * truth(DENSE) / truth(kept) - 1) for kept in unseen]
    assert np.mean(errors) < error
    assert model.error is not None
    assert model.error < 2 * error
    assert model.of(DENSE) == pytest.approx(1)
    blind = fit(noise, step=1)
    assert np.mean([abs(blind.of(kept) * truth(DENSE) / truth(kept) - 1) for kept in unseen]) > 2 * np.mean(errors)


def test_a_new_timing_moves_the_fit() -> None:
    model = fit(0.01)
    kept = np.array([32.0, 64.0, 48.0, 16.0])
    slower = 1.1 * model.of(kept)
    moved = fit_latency(model.form, [*model.timings, Timing(kept=kept, share=slower, weight=4)])
    assert abs(moved.of(kept) - slower) < abs(model.of(kept) - slower)
    assert moved.measured(kept) == slower
    assert model.measured(kept) is None


def test_shares_may_be_of_an_original_that_takes_more() -> None:
    model = fit(0.01)
    scaled = [Timing(kept=timing.kept, share=0.7 * timing.share) for timing in model.timings]
    of_original = fit_latency(model.form, scaled, whole=0.7)
    for kept in (DENSE, *draw(5, 3, 8)):
        assert of_original.of(kept) == pytest.approx(0.7 * model.of(kept))
    widths = {0: np.array([16.0, 64.0]), 2: np.array([48.0, 96.0])}
    ours, theirs = of_original.tables(widths, DENSE), model.tables(widths, DENSE)
    assert ours.constant == pytest.approx(0.7 * theirs.constant)
    assert (of_original.whole, of_original.error) == (0.7, pytest.approx(model.error))


def test_layers_that_read_several_groups_are_split_between_them() -> None:
    layers = LayerShares(
        macs=np.array([1.0, 1.0, 4.0]),
        first=np.array([0, 1, 2]),
        second=np.array([3, 3, 3]),
        start=np.array([0.0, 0.0, 0.25, 1.0]),  # a quarter of what is concatenated is of the image
        slope=np.array([[1 / 16, 0], [0, 1 / 32], [1 / 64, 1 / 64], [0, 0]]),
    )
    form = LatencyForm(layers, np.array([16.0, 32.0]), np.ones(2))
    kept = np.array([[8.0, 32.0], [16.0, 8.0], [4.0, 4.0], [12.0, 24.0]])
    truths = 0.1 + 0.9 * (0.25 + kept @ [1 / 64, 1 / 64])
    model = fit_latency(form, [Timing(kept=row, share=share) for row, share in zip(kept, truths, strict=True)])
    assert model.of(np.array([8.0, 8.0])) == pytest.approx(0.1 + 0.9 * 0.5, rel=0.05)


@given(seed=st.integers(0, 10_000), share=st.floats(0.4, 0.95))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_no_combination_within_the_latency_is_better(seed: int, share: float) -> None:
    generator = np.random.default_rng(seed)
    model = fit(0.02)
    widths = {index: np.sort(generator.choice(np.arange(1, DENSE[index]), 3, replace=False)) for index in (0, 1, 2)}
    widths = {index: np.append(choices, DENSE[index]) for index, choices in widths.items()}
    damage = {index: np.sort(generator.random(len(choices)))[::-1] for index, choices in widths.items()}
    lowest = np.array([*(widths[index][0] for index in widths), DENSE[3]])
    limit = max(share, model.of(lowest))

    found = solve_knapsack(widths, damage, model, DENSE, limit)

    best = np.inf
    for places in itertools.product(range(4), repeat=3):
        kept = np.array([*(widths[index][place] for index, place in enumerate(places)), DENSE[3]])
        if model.of(kept) <= limit * (1 + 1e-9):
            best = min(best, sum(damage[index][place] for index, place in enumerate(places)))
    harm = sum(damage[index][np.flatnonzero(widths[index] == found[index])[0]] for index in widths)
    assert model.of(found) <= limit * (1 + 1e-6)
    assert harm == pytest.approx(best, rel=2e-3, abs=2e-3)
