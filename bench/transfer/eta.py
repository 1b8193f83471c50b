"""How long a study still takes, from what its trials took."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pruneport.bench.transfer.store import Finished
from pruneport.bench.transfer.study import Trial

__all__ = ["work_left"]


def work_left(finished: Sequence[Finished], missing: Collection[Trial]) -> float:
    """Seconds that one worker needs for the missing trials.

    A trial takes its mean time outside the training, and training time in proportion to its FLOPs. Both are those of
    the trials that ran with the same network and share, or else with the same network, or else of all.

    Args:
        finished: At least one.
        missing: What is still to run.
    """
    done = [item for item in finished if item.error is None] or list(finished)
    by_kind: dict[tuple[object, ...], list[Finished]] = {}
    for item in done:
        for kind in _kinds(item.trial):
            by_kind.setdefault(kind, []).append(item)
    costs = {kind: _cost(items) for kind, items in by_kind.items()}
    seconds = 0.0
    for trial in missing:
        per_flop, besides = next(costs[kind] for kind in _kinds(trial) if kind in costs)
        seconds += per_flop * trial.budget + besides
    return seconds


def _kinds(trial: Trial) -> tuple[tuple[object, ...], ...]:
    """What a trial is alike with others in, the most telling first."""
    return (trial.network, trial.scope, trial.recipe, trial.kept), (trial.network,), ()


def _cost(items: Sequence[Finished]) -> tuple[float, float]:
    """Seconds of training a FLOP, and seconds besides a trial."""
    ends = [item.events[-1] for item in items if item.events]
    training_s, flops = sum(end.seconds for end in ends), sum(end.flops for end in ends)
    besides_s = max(0.0, sum(item.wall_s for item in items) - training_s)
    return training_s / flops if flops else 0.0, besides_s / len(items)
