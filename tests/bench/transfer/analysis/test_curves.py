"""What is read off a study's events, against figures worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from pruneport.bench.transfer.analysis.advice import advise
from pruneport.bench.transfer.analysis.advice_records import MeasuredBest
from pruneport.bench.transfer.analysis.curves import Way, areas, cells, crossing, frontier, low_budget_gain, stream
from pruneport.bench.transfer.analysis.records import AdviceAtBudget, Summary
from pruneport.bench.transfer.analysis.summary import summarise
from pruneport.bench.transfer.report import claim, render_transfer
from pruneport.bench.transfer.store import Finished
from pruneport.bench.transfer.study import Trial
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
    from pruneport.compress.finetune.state import Event

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
    (row,) = summary.networks[0].low_budgets
    assert row.gain == pytest.approx(0.35 / 0.15 - 1)
    assert row.claimed is row.beyond_spread is True


def test_low_budgets_are_the_lowest_third_of_a_range_in_logarithms() -> None:
    budgets = (5e10, 1.6e11, 5e11, 1.6e12, 5e12)  # two decades: the third ends at 2.3e11
    done = [_finished(way, "a", budget, 0, (0.5,)) for way in (_DENSE, _HALF) for budget in budgets]
    assert [row[0] for row in low_budget_gain(cells(done), "net")] == [5e10, 1.6e11]


def test_advice_names_what_it_does_not_know(finished: list[Finished]) -> None:
    answer = advise(finished, 1e10, "a", None)
    assert answer.advice.kept == 0.5
    assert answer.advice.extrapolated is False
    assert advise(finished, 1e15, None, "net").advice.extrapolated is True
    with pytest.raises(InputError, match=r"`task` c: expected one task of the study's \(a, b\)"):
        advise(finished, 1e10, "c", None)
    with pytest.raises(InputError, match="`budget` is -1"):
        advise(finished, -1, None, None)
    with pytest.raises(InputError, match="none yet"):
        advise([], 1e10, None, None)
    with pytest.raises(InputError, match="`budget` is inf"):
        advise(finished, float("inf"), None, None)
    with pytest.raises(InputError, match="only the dense network has results for net"):
        advise([done for done in finished if done.trial.kept == 1], 1e10, None, None)


def test_a_task_of_ones_own_gets_advice(finished: list[Finished]) -> None:
    mine = [done for done in finished if done.trial.task == "a"]
    advice = advise(mine, 1e10, None, None).advice
    assert advice.kept == 0.5
    assert advice.law is not None
    assert advice.check.error_rms is advice.check.regret is None  # no other task to check it on
    assert advice.measured == MeasuredBest(budget=1e10, kept=0.5, errors={0.5: pytest.approx(0.6), 1: 0.8})
    summary = summarise(mine, [done.trial for done in mine])
    (law,) = summary.networks[0].laws
    assert [row.measured for row in law.advice] == [0.5, 0.5, 1.0]
    assert "not checked on another task" in _page(summary)


def test_one_budget_is_answered_by_what_was_measured(finished: list[Finished]) -> None:
    one = [done for done in finished if done.trial.budget == 1e11]
    for asked, outside in ((1e11, False), (3e11, True), (1e10, True)):
        advice = advise(one, asked, None, None).advice
        assert (advice.kept, advice.law, advice.measured.budget) == (0.5, None, 1e11)
        assert advice.extrapolated is outside
        assert "two budgets" in advice.no_law
    below = [done for done in finished if done.trial.budget < 1e12 and done.trial.kept == 1]
    two = advise([*below, *one], 9e10, "b", None).advice
    assert (two.measured.budget, two.law) == (1e11, None)  # at 1e10 there is nothing to compare
    summary = summarise(one, [done.trial for done in one])
    (law,) = summary.networks[0].laws
    assert law.advice == (AdviceAtBudget(budget=1e11, measured=0.5, law=None),)
    assert "No law: a law needs at least 7 results" in _page(summary)


def test_a_way_with_too_few_results_leaves_the_others_theirs(finished: list[Finished]) -> None:
    half = [done for done in finished if done.trial.kept == 0.5]
    third = [replace(done, trial=replace(done.trial, kept=0.35)) for done in half]
    started = [
        _finished(Way("channels", "none", kept), task, 1e10, 0, (0.1,)) for kept in (0.5, 0.35) for task in ("a", "b")
    ]
    answer = advise([*half, *third, *started], 1e10, None, None)
    assert {entry.scope: entry.law is None for entry in answer.others} == {"channels": True, "filters": False}
    assert answer.advice.scope == "filters"  # what a law says comes first
    with pytest.raises(InputError, match="nothing to compare: with no budget have two shares of net results on every"):
        advise(half, 1e10, None, None)


def test_means_are_over_the_same_tasks(finished: list[Finished]) -> None:
    easy = Way("filters", "none", 0.35)  # has run on the easier task only, where all are better
    more = [*finished, *(_finished(easy, "a", budget, 0, (0.61,)) for budget in _BUDGETS)]
    summary = summarise(more, [done.trial for done in more])
    (law,) = summary.networks[0].laws
    assert [row.measured for row in law.advice] == [0.5, 0.5, 1.0]
    short = [done for done in finished if (done.trial.task, done.trial.budget) != ("b", 1e12)]
    found = areas(cells(short), "net")
    assert _HALF in found["a"]
    assert found[""] == {}  # the other task has no whole curve


def test_one_seed_has_no_spread(finished: list[Finished]) -> None:
    one = [done for done in finished if done.trial.seed == 0]
    assert {cell.spread for cell in cells(one)} == {None}
    assert stream(cells(one), "net")[_HALF, 1e12][1] is None
    summary = summarise(one, [done.trial for done in one])
    (network,) = summary.networks
    (row,) = network.low_budgets
    assert row.claimed is True
    assert row.beyond_spread is row.deviation is None
    assert "holds with one seed, whose spread is not known" in claim(network)
    assert "dense, one seed)" in claim(network)
    _page(summary)


def test_without_a_dense_network_nothing_is_said_about_it(finished: list[Finished]) -> None:
    third = [replace(done, trial=replace(done.trial, kept=0.35)) for done in finished if done.trial.kept < 1]
    pruned = [*third, *(done for done in finished if done.trial.kept < 1)]
    summary = summarise(pruned, [done.trial for done in pruned])
    assert summary.networks[0].dense is False
    page = _page(summary)
    assert "add 1 to <code>kept</code>" in page
    assert "Budget from which the dense network is better" not in page
    assert advise(pruned, 1e11, None, None).advice.check.dense_regret is None


def test_a_dense_network_that_gets_nothing_right(finished: list[Finished]) -> None:
    wrong = [
        replace(done, events=tuple(replace(event, error=1.0) for event in done.events))
        if done.trial.kept == 1
        else done
        for done in finished
    ]
    summary = summarise(wrong, [done.trial for done in wrong])
    assert summary.networks[0].low_budgets[0].gain is None
    _page(summary)


def _page(summary: Summary) -> str:
    """The report, of figures that JSON can hold."""
    json.dumps(summary.to_dict(), allow_nan=False)
    return render_transfer(summary, "study")
