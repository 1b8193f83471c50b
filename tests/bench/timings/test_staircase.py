"""The step of a staircase that is known, and one that is measured."""

from __future__ import annotations

import numpy as np
import pytest

from pruneport.bench.options import RuntimeOptions
from pruneport.bench.timings.staircase import measure_staircase, step_of

WIDTHS = list(range(32, 129, 4))


@pytest.mark.parametrize("step", [4, 8, 16, 32, 64])
@pytest.mark.parametrize("slow", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(5))
def test_the_step_of_a_known_staircase_is_found(step: int, slow: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    widths = np.array(WIDTHS)
    times = 0.1 + np.ceil(widths / step) * step / 100 + slow * (widths % step > 0)
    assert step_of(WIDTHS, times * (1 + 0.01 * generator.standard_normal(len(times)))) == step


def test_times_that_hardly_differ_tell_no_step() -> None:
    generator = np.random.default_rng(0)
    assert step_of(WIDTHS, 1 + 0.02 * generator.random(len(WIDTHS))) is None


def test_a_staircase_is_measured_on_the_cpu() -> None:
    found = measure_staircase(RuntimeOptions(threads=2), 1)
    assert {found.convolution, found.depthwise} <= {None, 4, 8, 16, 32, 64}
