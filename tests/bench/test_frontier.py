"""What is read off a study's events, against figures worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pruneport.bench.frontier import Way, areas, cells, crossing, frontier, low_budget_gain, stream
from pruneport.bench.store import Finished
from pruneport.bench.study import Trial
from pruneport.bench.transfer_summary import advise, summarise
from pruneport.errors import InputError

_DENSE, _HALF = Way("dense", "none", 1.0), Way("filters", "none", 0.5)
_BUDGETS = (1e10, 1e11, 1e12)
_ERRORS = {  # by way and task, a budget after the other
    (_DENSE, "a"): (0.8, 0.4, 0.1),
    (_HALF, "a"): (0.6, 0.3, 0.2),
    (_DENSE, "b"): (0.9, 0.6, 0.3),
    (_HALF, "b"): (0.7, 0.5, 0.4),
}


def _finished(way: Way, task: str, budget: float, seed: int, errors: Sequence[float]) -> Finished:
    from pruneport.compress.train_state import Event

    trial = Trial(network="net", task=task, kept=way.kept, scope=way.scope, recipe=way.recipe, budget=budget, seed=seed)
    events = tuple(
        Event(step=10 * (i + 1), flops=budget * (i + 1) / len(errors), error=error, loss=1.0, macs=100, seconds=1.0)
        for i, error in enumerate(errors)
    )
    return Finished(trial=trial, events=events, wall_s=1.0, host="here")


@pytest.fixture
def finished() -> list[Finished]:
    """Two seeds, 0.01 above and below; the events half way are worse by 0.05."""
    return [
        _finished(way, task, budget, seed, (error + 0.05, error + (0.01 if seed else -0.01)))
        for (way, task), row in _ERRORS.items()
        for budget, error in zip(_BUDGETS, row, strict=True)
        for seed in (0, 1)
    ]


def test_seeds_become_mean_and_spread(finished: list[Finished]) -> None:
    found = {(cell.way, cell.task, cell.budget): cell for cell in cells(finished)}
    assert len(found) == 12
    cell = found[_HALF, "b", 1e11]
    assert cell.mean == pytest.approx(0.5)
    assert cell.spread == pytest.approx(0.01 * 2**0.5)  # of two values 0.02 apart


def test_the_stream_is_the_mean_over_tasks(finished: list[Finished]) -> None:
    means = stream(cells(finished), "net")
    assert means[_DENSE, 1e10][0] == pytest.approx(0.85)
    assert means[_HALF, 1e12] == (pytest.approx(0.3), pytest.approx(0.01))  # sqrt(2 x 2e-4) / 2
    alone = [done for done in finished if (done.trial.task, done.trial.budget) != ("b", 1e12)]
    assert (_HALF, 1e12) not in stream(cells(alone), "net")  # not every task has it


def test_where_dense_overtakes(finished: list[Finished]) -> None:
    # The gaps over the tasks are 0.2, 0.1 and -0.1: zero half way between the last two budgets, in logarithms.
    assert crossing(stream(cells(finished), "net"), _HALF) == pytest.approx(10**11.5)


def test_areas_by_hand(finished: list[Finished]) -> None:
    found = areas(cells(finished), "net")
    assert found["a"][_DENSE] == pytest.approx((0.8 / 2 + 0.4 + 0.1 / 2) / 2)
    assert found[""][_HALF] == pytest.approx(((0.6 + 0.2) / 2 + 0.3 + (0.7 + 0.4) / 2 + 0.5) / 4)


def test_the_frontier_falls(finished: list[Finished]) -> None:
    found = frontier(finished, "net", "a")
    assert [(flops, round(error, 6), way.kept) for flops, error, way in found] == [
        (0.5e10, 0.65, 0.5),
        (1e10, 0.6, 0.5),
        (0.5e11, 0.35, 0.5),
        (1e11, 0.3, 0.5),
        (0.5e12, 0.15, 1.0),
        (1e12, 0.1, 1.0),
    ]


def test_the_gain_at_low_budgets(finished: list[Finished]) -> None:
    ((budget, way, accuracy, dense, deviation),) = low_budget_gain(cells(finished), "net")
    assert (budget, way) == (1e10, _HALF)
    assert (accuracy, dense) == (pytest.approx(0.35), pytest.approx(0.15))
    assert deviation == pytest.approx(0.01 * 2**0.5)
    summary = summarise(finished, [done.trial for done in finished])
    (row,) = summary["networks"][0]["low_budgets"]
    assert row["gain"] == pytest.approx(0.35 / 0.15 - 1)
    assert row["claimed"] is row["beyond_spread"] is True


def test_advice_names_what_it_does_not_know(finished: list[Finished]) -> None:
    answer = advise(finished, 1e10, "a", None)
    assert answer["advice"]["kept"] == 0.5
    assert answer["advice"]["extrapolated"] is False
    assert advise(finished, 1e15, None, "net")["advice"]["extrapolated"] is True
    with pytest.raises(InputError, match=r"--task c: expected one task of the study's \(a, b\)"):
        advise(finished, 1e10, "c", None)
    with pytest.raises(InputError, match="--budget is -1"):
        advise(finished, -1, None, None)
    with pytest.raises(InputError, match="none yet"):
        advise([], 1e10, None, None)
