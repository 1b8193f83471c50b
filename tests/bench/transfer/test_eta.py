"""The estimate of the time left, against trials whose times follow a known law."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pruneport.bench.transfer.eta import work_left
from pruneport.bench.transfer.store import Finished
from pruneport.bench.transfer.study import Trial, names
from pruneport.compress.finetune.state import Event

_TRUTH = {("small", 1.0): (3.0, 2e-11), ("small", 0.5): (3.0, 4e-11), ("large", 1.0): (8.0, 1e-11)}


def _trial(network: str, kept: float, budget: float, seed: int = 0) -> Trial:
    return Trial(network=network, task="a", kept=kept, scope="filters", recipe="none", budget=budget, seed=seed)


def _seconds(trial: Trial) -> float:
    start, per_flop = _TRUTH[trial.network, trial.kept]
    return start + per_flop * trial.budget


def _done(trial: Trial, error: str | None = None) -> Finished:
    """A trial as the store has it: ``wall_s`` of the whole, ``seconds`` of the training steps alone."""
    if error:
        return Finished(trial=trial, events=(), wall_s=0.0, host="here", error=error)
    start, _ = _TRUTH[trial.network, trial.kept]
    ends = [
        Event(
            step=step,
            flops=trial.budget * step / 2,
            error=0.5,
            loss=1.0,
            macs=10,
            seconds=(_seconds(trial) - start) * step / 2,
        )
        for step in (1, 2)
    ]
    return Finished(trial=trial, events=tuple(ends), wall_s=_seconds(trial), host="here")


def test_starts_and_rates_are_told_apart_for_each_network_and_share() -> None:
    done = [_done(_trial(*kind, budget)) for kind in _TRUTH for budget in (5e10, 2e11)]
    missing = [_trial(*kind, budget, seed) for kind in _TRUTH for budget in (2e11, 1e12, 5e12) for seed in (1, 2)]
    assert work_left(done, missing) == pytest.approx(sum(map(_seconds, missing)))


def test_a_share_that_has_not_run_is_taken_for_its_network_and_a_network_for_all() -> None:
    done = [_done(_trial("small", 1.0, budget)) for budget in (5e10, 2e11)]
    like = _seconds(_trial("small", 1.0, 1e12))
    assert work_left(done, [_trial("small", 0.5, 1e12)]) == pytest.approx(like)
    assert work_left(done, [_trial("large", 1.0, 1e12)]) == pytest.approx(like)


def test_one_trial_is_enough() -> None:
    done = [_done(_trial("small", 1.0, 1e11))]
    assert work_left(done, [_trial("small", 1.0, 1e12)]) == pytest.approx(23)  # 3 s besides 20 s of training


def test_slow_and_fast_trials_are_averaged() -> None:
    fast = _done(_trial("small", 1.0, 1e11))
    slow = replace(fast, wall_s=9.0, events=(replace(fast.events[-1], seconds=4.0),))
    assert work_left([fast, slow], [_trial("small", 1.0, 1e12)]) == pytest.approx(4 + 30)  # besides 3 and 5 s


def test_failed_trials_say_nothing_about_time_unless_there_are_no_others() -> None:
    failed = _done(_trial("small", 1.0, 1e11), error="its process was killed")
    assert work_left([failed], [_trial("small", 1.0, 1e12)]) == 0
    assert work_left([failed, _done(_trial("small", 1.0, 1e11))], [_trial("small", 1.0, 1e11)]) == pytest.approx(5)


def test_names_are_short_and_tell_apart() -> None:
    items = ["torchvision:resnet50=a.pth", "torchvision:resnet50=b.pth", "nets.py:mine", "tasks/birds/"]
    assert list(names(items).values()) == [*items[:2], "nets.py:mine", "birds"]
