"""How long a study still takes, from what its trials took."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
from scipy.optimize import nnls

from pruneport.bench.transfer.store import Finished
from pruneport.bench.transfer.study import Trial

__all__ = ["work_left"]


def work_left(finished: Sequence[Finished], missing: Collection[Trial]) -> float:
    """Seconds that one worker needs for the missing trials.

    A trial takes a start, and a time by its FLOPs: both are fitted by non-negative least squares, for each network and
    share alone. Before it has a trial of its own, for each network, and before that for all.

    Args:
        finished: At least one.
        missing: What is still to run.
    """
    done = [item for item in finished if item.error is None] or list(finished)
    kinds: tuple[Callable[[Trial], object], ...] = (
        lambda trial: (trial.network, trial.scope, trial.recipe, trial.kept),
        lambda trial: trial.network,
        lambda trial: None,
    )
    rates = [_rates(done, kind) for kind in kinds]
    seconds = 0.0
    for trial in missing:
        known = (rate.get(kind(trial)) for kind, rate in zip(kinds, rates, strict=True))
        per_flop, start = next(rate for rate in known if rate)
        seconds += per_flop * trial.budget + start
    return seconds


def _rates(done: Sequence[Finished], kind: Callable[[Trial], object]) -> dict[object, tuple[float, float]]:
    """Seconds a FLOP, and seconds to start, of each kind of trial."""
    groups: dict[object, list[Finished]] = {}
    for item in done:
        groups.setdefault(kind(item.trial), []).append(item)
    rates = {}
    for key, items in groups.items():
        budgets = np.array([item.trial.budget for item in items])
        # Where all had one budget, nnls takes the first of two equal columns: all time is by FLOPs, which errs upwards.
        columns = np.stack([budgets / budgets.max(), np.ones(len(items))], axis=1)
        slope, start = nnls(columns, np.array([item.wall_s for item in items]))[0]
        rates[key] = (float(slope / budgets.max()), float(start))
    return rates
