"""The knapsack against trying every combination of widths."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruneport.compress.allocation.forms import Quadratic
from pruneport.compress.allocation.knapsack import solve_knapsack


@given(seed=st.integers(0, 10_000), groups=st.integers(1, 4), share=st.floats(0.35, 0.95))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_no_combination_within_the_limit_is_better(seed: int, groups: int, share: float) -> None:
    generator = np.random.default_rng(seed)
    dense = generator.integers(4, 12, groups + 1).astype(float)  # the last group stays dense
    free = list(range(groups))
    products = np.triu(generator.random((groups + 1, groups + 1)) * (generator.random((groups + 1, groups + 1)) < 0.6))
    cost = Quadratic(constant=2.0, linear=generator.random(groups + 1), products=(products + products.T) / 2)
    widths = {index: np.unique(generator.integers(1, dense[index], 3)).astype(float) for index in free}
    widths = {index: np.append(options, dense[index]) for index, options in widths.items()}
    damage = {index: np.sort(generator.random(len(options)))[::-1] for index, options in widths.items()}
    lowest = dense.copy()
    lowest[free] = [widths[index][0] for index in free]
    limit = max(share * cost.of(dense), cost.of(lowest))

    found = solve_knapsack(widths, damage, cost, dense, limit)

    def harm(kept: np.ndarray) -> float:
        return float(sum(damage[index][np.flatnonzero(widths[index] == kept[index])[0]] for index in free))

    best = np.inf
    for choice in itertools.product(*(widths[index] for index in free)):
        kept = dense.copy()
        kept[free] = choice
        if cost.of(kept) <= limit * (1 + 1e-9):
            best = min(best, harm(kept))
    assert found[-1] == dense[-1]
    assert cost.of(found) <= limit * (1 + 1e-6)
    assert harm(found) == pytest.approx(best, rel=2e-3, abs=2e-3 * max(max(d) for d in damage.values()))
