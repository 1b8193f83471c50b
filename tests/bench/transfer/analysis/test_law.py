"""The law finds what made the data, chooses shares for tasks it has not seen, and says so when it cannot."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pruneport.bench.transfer.analysis.law import FORMS, Point, best_macs_kept, check_law, fit_law
from pruneport.errors import InputError

_SHARES = (1.0, 0.75, 0.5, 0.35)
_BUDGETS = (1e10, 1e11, 1e12, 1e13)
_TASKS = {"birds": (0.05, 0.7), "cars": (0.2, 0.4), "roads": (0.01, 0.9)}


def _sparse_error(floor: float, scale: float, kept: float, budget: float) -> float:
    """Written out anew: a (1 - k)^b + (C / k)^-c with a = 0.6, b = 2, c = 0.3."""
    return floor + scale * (0.6 * (1 - kept) ** 2 + (budget / 1e10 / kept) ** -0.3)


def _points(noise: float = 0.0) -> list[Point]:
    generator = np.random.default_rng(0)
    return [
        Point(
            task=task,
            macs_kept=kept,
            budget=budget,
            error=_sparse_error(*_TASKS[task], kept, budget) + noise * float(generator.standard_normal()),
        )
        for task, kept, budget in itertools.product(_TASKS, _SHARES, _BUDGETS)
    ]


def test_it_finds_what_made_the_data() -> None:
    law = fit_law(_points(), "sparse")
    assert law.rms < 1e-6
    assert np.exp(law.parameters) == pytest.approx([0.6, 2, 0.3], rel=1e-3)
    assert law.floors == pytest.approx({name: floor for name, (floor, _) in _TASKS.items()}, abs=1e-4)
    for kept, budget in ((0.6, 3e11), (0.9, 1e14)):  # neither share nor budget was fitted on
        assert law.error("cars", kept, budget) == pytest.approx(_sparse_error(0.2, 0.4, kept, budget), abs=1e-4)


def test_it_advises_little_for_little_and_all_for_much() -> None:
    law = fit_law(_points(0.003), "sparse")
    chosen = [best_macs_kept(law, _SHARES, budget) for budget in (1e10, 1e12, 1e15)]
    true = [
        min(_SHARES, key=lambda kept, at=budget: _sparse_error(0, 1, kept, at))  # type: ignore[misc]
        for budget in (1e10, 1e12, 1e15)
    ]
    assert chosen == true
    assert chosen[0] < chosen[-1]


def test_it_is_checked_on_tasks_and_budgets_left_out() -> None:
    checks = {form: check_law(_points(), form) for form in FORMS}
    right = checks["sparse"]
    assert right.error_rms < 1e-4
    assert right.regret == right.budget_regret == 0
    assert right.dense_regret > 0.005
    assert checks["product"].error_rms > 10 * right.error_rms  # another form than the one that made the data


def test_what_cannot_be_left_out_is_not_checked() -> None:
    alone = check_law([point for point in _points() if point.task == "cars"], "sparse")
    assert alone.error_rms is alone.regret is None
    assert alone.budget_regret == 0
    assert alone.dense_regret == pytest.approx(0.0049, abs=1e-4)
    two_budgets = check_law([point for point in _points() if point.budget < 1e12], "sparse")
    assert two_budgets.budget_regret is None
    assert two_budgets.regret is not None
    pruned = check_law([point for point in _points() if point.macs_kept < 1], "sparse")
    assert pruned.dense_regret is pruned.error_rms is None


def test_too_little_to_go_by() -> None:
    with pytest.raises(InputError, match="at least 6 results at two shares"):
        fit_law(_points()[:5], "sparse")
    with pytest.raises(InputError, match="two budgets; there are 12, at 4 and 1"):
        fit_law([point for point in _points() if point.budget == 1e10], "sparse")
    with pytest.raises(InputError, match="at least 9 results at two shares of the MACs and two budgets; there are 8"):
        fit_law([point for point in _points() if point.task != "cars"][::3][:8], "offset")
