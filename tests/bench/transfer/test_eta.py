"""The estimate of the time left, against trials whose times follow a known law."""

from __future__ import annotations

import pytest

from pruneport.bench.transfer.eta import work_left
from pruneport.bench.transfer.store import Finished
from pruneport.bench.transfer.study import Trial, names

_TRUTH = {("small", 1.0): (3.0, 2e-11), ("small", 0.5): (3.0, 4e-11), ("large", 1.0): (8.0, 1e-11)}


def _trial(network: str, kept: float, budget: float, seed: int = 0) -> Trial:
    return Trial(network=network, task="a", kept=kept, scope="filters", recipe="none", budget=budget, seed=seed)


def _seconds(trial: Trial) -> float:
    start, per_flop = _TRUTH[trial.network, trial.kept]
    return start + per_flop * trial.budget


def _done(trial: Trial, error: str | None = None) -> Finished:
    return Finished(trial=trial, events=(), wall_s=0.0 if error else _seconds(trial), host="here", error=error)


def test_starts_and_rates_are_told_apart_for_each_network_and_share() -> None:
    done = [_done(_trial(*kind, budget)) for kind in _TRUTH for budget in (5e10, 2e11)]
    missing = [_trial(*kind, budget, seed) for kind in _TRUTH for budget in (2e11, 1e12, 5e12) for seed in (1, 2)]
    assert work_left(done, missing) == pytest.approx(sum(map(_seconds, missing)))


def test_a_share_that_has_not_run_is_taken_for_its_network_and_a_network_for_all() -> None:
    done = [_done(_trial("small", 1.0, budget)) for budget in (5e10, 2e11)]
    like = _seconds(_trial("small", 1.0, 1e12))
    assert work_left(done, [_trial("small", 0.5, 1e12)]) == pytest.approx(like)
    assert work_left(done, [_trial("large", 1.0, 1e12)]) == pytest.approx(like)


def test_one_budget_alone_gives_an_upper_bound() -> None:
    done = [_done(_trial("small", 1.0, 1e11))]
    assert work_left(done, [_trial("small", 1.0, 1e12)]) == pytest.approx(50)  # ten times 5 s; in truth 23


def test_failed_trials_say_nothing_about_time_unless_there_are_no_others() -> None:
    failed = _done(_trial("small", 1.0, 1e11), error="its process was killed")
    assert work_left([failed], [_trial("small", 1.0, 1e12)]) == 0
    assert work_left([failed, _done(_trial("small", 1.0, 1e11))], [_trial("small", 1.0, 1e11)]) == pytest.approx(5)


def test_names_are_short_and_tell_apart() -> None:
    items = ["torchvision:resnet50=a.pth", "torchvision:resnet50=b.pth", "nets.py:mine", "tasks/birds/"]
    assert list(names(items).values()) == [*items[:2], "nets.py:mine", "birds"]
