"""The rounds of a latency target: each solves for widths, exports the network and times it; which one is taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn

from pruneport.bench.latency.timer import DenseTimer, TimedShare
from pruneport.bench.timings.calibrate import rounds_for
from pruneport.commands.timing.measuring import DenseFile
from pruneport.compress.allocation.latency_model import LatencyModel, Timing, fit_latency
from pruneport.compress.assessment import Assessment
from pruneport.compress.options import CompressOptions
from pruneport.compress.prune import Pruned, prune
from pruneport.compress.records import LatencyRound
from pruneport.errors import TargetError
from pruneport.export.onnx.onnx_file import write_onnx
from pruneport.progress import Progress

__all__ = ["CLOSE", "STILL_TOLD", "Round", "choose", "solve_rounds", "time_exported", "time_surely"]

_ROUNDS = 3
CLOSE = 0.02
"""How far from the target, as a share of it, is met."""
STILL_TOLD = 0.05
"""Half of an interval, as a share of what is measured, beyond which a timing says too little to go on with."""
_WEIGHT = 4.0  # of a timing near the target, in the fit
_TRIES = 3  # each with three times as many runs
_MORE = 3
_LOWEST, _HIGHEST = 1e-3, 1 - 1e-3  # of what is solved for


@dataclass(frozen=True, kw_only=True)
class Round:
    """One solve: what came of it, and what was measured, if it was."""

    pruned: Pruned
    predicted: float
    timed: TimedShare | None

    def record(self) -> LatencyRound:
        """As the plan has it."""
        timed = self.timed
        if timed is None:
            return LatencyRound(predicted=self.predicted)
        return LatencyRound(
            predicted=self.predicted,
            measured=timed.share,
            low=timed.low,
            high=timed.high,
            wall=None if timed.clock == "wall" else timed.wall_share,
            dense_ms=timed.dense_ms,
        )


def solve_rounds(
    dense: DenseFile,
    timer: DenseTimer | None,
    options: CompressOptions,
    share: float,
    assessed: Assessment,
    model: LatencyModel,
    progress: Progress,
) -> list[Round]:
    """Solve until what is measured is within 2 % of the target; once, where nothing is measured."""
    rounds: list[Round] = []
    aim = share
    while True:
        priced = replace(assessed, cost=assessed.cost.with_latency(model))
        try:
            pruned = prune(dense.network, dense.source, replace(options, latency=aim), progress, priced)
        except TargetError:
            if not rounds:
                raise
            return rounds
        kept = np.array([group.kept_width for group in pruned.plan.groups], dtype=np.float64)
        if model.measured(kept) is not None and rounds:  # nothing nearer was found
            return rounds
        predicted = model.of(kept)
        timed = None if timer is None else time_exported(dense, timer, pruned.network, progress)
        rounds.append(Round(pruned=pruned, predicted=predicted, timed=timed))
        if timed is None:
            return rounds
        progress(f"{predicted:.3f} of the dense latency predicted, {timed.share:.3f} measured, {share:.3f} asked for")
        if abs(timed.share / share - 1) <= CLOSE or len(rounds) == _ROUNDS:
            return rounds
        more = Timing(kept=kept, share=timed.share, weight=_WEIGHT)
        model = fit_latency(model.form, [*model.timings, more], model.whole)
        aim = min(_HIGHEST, max(_LOWEST, share * model.of(kept) / timed.share))


def time_exported(dense: DenseFile, timer: DenseTimer, network: nn.Module, progress: Progress) -> TimedShare:
    """Export a pruned network and time it (see ``time_surely``).

    Raises:
        TargetError: It stays too wide.
    """
    progress("exporting the pruned network")
    path = dense.path.with_name("pruned.onnx")
    write_onnx(network, dense.source.takes, path, {}, dense.form, dense.source.preprocessing)
    return time_surely(timer, path, progress)


def time_surely(timer: DenseTimer, path: Path, progress: Progress) -> TimedShare:
    """Time a network, by its file, more often where the interval is too wide to tell whether a target is met.

    Raises:
        TargetError: It stays too wide to say anything (see ``STILL_TOLD``).
    """
    repeats = timer.options.repeats
    rounds = max(repeats, rounds_for(timer.time(path, 2).dense_ms, repeats))
    for _ in range(_TRIES):
        progress(f"timing it against dense, {rounds} rounds")
        timed = timer.time(path, rounds)
        if timed.spread <= CLOSE:
            return timed
        rounds *= _MORE
    if timed.spread <= STILL_TOLD:
        return timed
    hint = (
        ""
        if timer.clock == "thread-cpu" or timer.options.provider != "cpu"
        else (", or choose `threads=1`, whose own time other programs hardly change")
    )
    raise TargetError(
        f"the timer is too noisy to tell whether the latency target is met: after {timed.rounds} rounds the share of "
        f"the dense latency is {timed.share:.3f}, with a 95 % interval from {timed.low:.3f} to {timed.high:.3f}; "
        f"expected {CLOSE:.0%} to either side, and {STILL_TOLD:.0%} at most. Leave the machine alone meanwhile, or "
        f"repeat more often with `repeats`{hint}."
    )


def choose(rounds: Sequence[Round], share: float) -> int:
    """The round that prunes least of those that are fast enough; else the fastest."""
    shares = [entry.predicted if entry.timed is None else entry.timed.share for entry in rounds]
    fast = [number for number, found in enumerate(shares) if found <= share * (1 + CLOSE)]
    return max(fast, key=lambda number: shares[number]) if fast else int(np.argmin(shares))
