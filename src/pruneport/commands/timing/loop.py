"""The closed loop of a latency target: solve, export, time against dense, fit again."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from torch import nn

from pruneport.bench.latency.calibrate import rounds_for
from pruneport.bench.latency.timer import DenseTimer, TimedShare
from pruneport.bench.options import LatencyOptions
from pruneport.commands.artifacts import export_dense
from pruneport.commands.configs import ShipConfig, SweepConfig
from pruneport.commands.timing.measuring import DenseFile, check_place, export_form, width_step_on
from pruneport.commands.timing.tables import Timings, form_on, read_given, timings_for
from pruneport.compress.allocation.cost_model import LATENCIES
from pruneport.compress.allocation.latency_model import LatencyModel, Timing, fit_latency
from pruneport.compress.allocation.target import target_of
from pruneport.compress.assessment import Assessment, reasons_with
from pruneport.compress.options import CompressOptions, LatencyTarget
from pruneport.compress.prune import Pruned, prune
from pruneport.compress.records import LatencyReached, LatencyRound
from pruneport.errors import TargetError
from pruneport.export.onnx.exporter import OnnxNetwork
from pruneport.export.onnx.onnx_file import write_onnx
from pruneport.export.options import DEFAULTS, ExportOptions
from pruneport.models.record import Source
from pruneport.progress import Note, Progress, Stage

__all__ = ["LatencyPruner", "at_latency_batch", "check_latency", "is_latency", "refuse_latency", "time_exported"]

_Shipped = TypeVar("_Shipped", ShipConfig, SweepConfig)
_ROUNDS = 3
_CLOSE = 0.02  # of the target
_WEIGHT = 4.0  # of a timing near the target, in the fit
_TRIES = 3  # each with three times as many runs
_MORE = 3
_LOWEST, _HIGHEST = 1e-3, 1 - 1e-3  # of what is solved for


def is_latency(options: LatencyTarget) -> bool:
    """Whether the target is a latency."""
    return target_of(options)[0] in LATENCIES


def refuse_latency(options: LatencyTarget, bundle: object) -> None:
    """Refuse a latency target for a bundle that is compressed further: its original is another network than is timed.

    Raises:
        TargetError: The target is a latency.
    """
    if is_latency(options):
        raise TargetError(
            f"a latency target starts from the dense network, and {bundle} is a bundle; give the bundle's own source, "
            "or `flops`, `params` or `ratio`."
        )


def at_latency_batch(options: _Shipped) -> _Shipped:
    """The same where the finished file is timed at the latency target's batch size, too."""
    if options.latency_batch in options.batches or options.batch_size_fixed is not None:
        return options
    return replace(options, batches=tuple(sorted({*options.batches, options.latency_batch})))


def check_latency(options: LatencyOptions, form: ExportOptions) -> None:
    """Check what can be checked before any long work.

    Raises:
        InputError: An option is out of range, or the table is of another place.
        ProviderError: The provider is not there or does not start.
    """
    if options.latency_table is not None:
        read_given(options)
    else:
        check_place(options, form)


@dataclass(frozen=True, kw_only=True)
class LatencyPruner:
    """A ``Pruner`` that meets a latency target; any other target it leaves to ``prune``.

    Attributes:
        where: Where the latency holds, and where timings are kept.
        form: What the ONNX files are like.
        exported: The dense network as ONNX, where it is at hand.
    """

    where: LatencyOptions
    form: ExportOptions = DEFAULTS
    exported: OnnxNetwork | None = None

    def __call__(
        self, network: nn.Module, source: Source, options: CompressOptions, progress: Progress, assessed: Assessment
    ) -> Pruned:
        """Prune the network until its latency, as measured, is within 2 % of the target; in three rounds at most.

        Raises:
            TargetError: The target is out of reach, or the timer is too noisy to tell.
            InputError: The table that was given does not fit.
            ProviderError: The provider does not run the networks.
        """
        if not is_latency(options):
            return prune(network, source, options, progress, assessed)
        progress(Stage("meeting the latency target", still=True))
        form = export_form(network, source, self.form)
        with tempfile.TemporaryDirectory() as folder:
            exported = (
                self.exported or export_dense(network, source, replace(form, precisions=("fp32",)), progress).fp32
            )
            path = Path(folder) / "dense.onnx"
            exported.save(path, {})
            dense = DenseFile(network=network, source=source, path=path, form=exported.options)
            timings = timings_for(dense, assessed, self.where, progress)
            return _meet(dense, timings, options, assessed, progress)


@dataclass(frozen=True, kw_only=True)
class _Round:
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


def _meet(
    dense: DenseFile, timings: Timings, options: CompressOptions, assessed: Assessment, progress: Progress
) -> Pruned:
    """Solve, export, time and fit again; the round that meets the target best is the result."""
    table = timings.table
    timer = None if timings.here is None else DenseTimer(dense.path, timings.here, table.place.batch)
    share = _share_asked(options, table.dense_ms if timer is None else _dense_ms(timer, dense, table.dense_ms))
    allowed = replace(options, latency=share, latency_ms=None, round_to=width_step_on(table.staircase, options))
    assessed = replace(assessed, reasons=reasons_with(dense.network, assessed, allowed))
    form = form_on(table.staircase, assessed, dense.network)
    timed = [entry for entry in timings.to_fit() if form.presence.owners or entry.kept.all()]
    first = fit_latency(form, timed)
    rounds = _rounds(dense, timer, allowed, share, assessed, first, progress)
    chosen = _choose(rounds, share)
    reached = LatencyReached(
        asked=share,
        asked_ms=options.latency_ms,
        where=str(table.place),
        clock=table.clock,
        batch=table.place.batch,
        step=allowed.round_to,
        networks=len(table.timings),
        fit_error=first.error,
        rounds=tuple(entry.record() for entry in rounds),
        chosen=chosen,
    )
    pruned = rounds[chosen].pruned
    plan = replace(pruned.plan, latency=reached, request=replace(pruned.plan.request, value=share))
    if said := _said(reached):
        progress(Note(said))
        plan = replace(plan, note=f"{said} {plan.note}" if plan.note else said)
    return replace(pruned, plan=plan)


def _rounds(
    dense: DenseFile,
    timer: DenseTimer | None,
    options: CompressOptions,
    share: float,
    assessed: Assessment,
    model: LatencyModel,
    progress: Progress,
) -> list[_Round]:
    """Solve until what is measured is within 2 % of the target; once, where nothing is measured."""
    rounds: list[_Round] = []
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
        rounds.append(_Round(pruned=pruned, predicted=predicted, timed=timed))
        if timed is None:
            return rounds
        progress(f"{predicted:.3f} of the dense latency predicted, {timed.share:.3f} measured, {share:.3f} asked for")
        if abs(timed.share / share - 1) <= _CLOSE or len(rounds) == _ROUNDS:
            return rounds
        model = fit_latency(model.form, [*model.timings, Timing(kept=kept, share=timed.share, weight=_WEIGHT)])
        aim = min(_HIGHEST, max(_LOWEST, share * model.of(kept) / timed.share))


def time_exported(dense: DenseFile, timer: DenseTimer, network: nn.Module, progress: Progress) -> TimedShare:
    """Export a pruned network and time it, more often where the interval is too wide to tell.

    Raises:
        TargetError: It stays too wide.
    """
    progress("exporting the pruned network")
    path = dense.path.with_name("pruned.onnx")
    write_onnx(network, dense.source.takes, path, {}, dense.form, dense.source.preprocessing)
    repeats = timer.options.repeats
    rounds = max(repeats, rounds_for(timer.time(path, 2).dense_ms, repeats))
    for _ in range(_TRIES):
        progress(f"timing it against dense, {rounds} rounds")
        timed = timer.time(path, rounds)
        if timed.spread <= _CLOSE:
            return timed
        rounds *= _MORE
    hint = (
        ""
        if timer.clock == "thread-cpu" or timer.options.provider != "cpu"
        else (", or choose `threads=1`, whose own time other programs hardly change")
    )
    raise TargetError(
        f"the timer is too noisy to tell whether the latency target is met: after {timed.rounds} rounds the share of "
        f"the dense latency is {timed.share:.3f}, with a 95 % interval from {timed.low:.3f} to {timed.high:.3f}; "
        f"expected {_CLOSE:.0%} to either side at most. Leave the machine alone meanwhile, or repeat more often with "
        f"`repeats`{hint}."
    )


def _dense_ms(timer: DenseTimer, dense: DenseFile, about_ms: float) -> float:
    """What the dense network takes now."""
    return timer.time(dense.path, max(2, rounds_for(about_ms, timer.options.repeats))).dense_ms


def _share_asked(options: CompressOptions, dense_ms: float) -> float:
    """The target as a share of the dense latency.

    Raises:
        TargetError: The dense network is as fast already.
    """
    name, value = target_of(options)
    if name == "latency":
        return value
    if value >= dense_ms:
        raise TargetError(
            f"`latency_ms` is {value:g}, and the dense network takes {dense_ms:.3g} ms; expected fewer milliseconds."
        )
    return value / dense_ms


def _choose(rounds: Sequence[_Round], share: float) -> int:
    """The round that prunes least of those that are fast enough; else the fastest."""
    shares = [entry.predicted if entry.timed is None else entry.timed.share for entry in rounds]
    fast = [number for number, found in enumerate(shares) if found <= share * (1 + _CLOSE)]
    return max(fast, key=lambda number: shares[number]) if fast else int(np.argmin(shares))


def _said(reached: LatencyReached) -> str:
    """What a user should know of the target; empty where it is met."""
    best = reached.rounds[reached.chosen]
    if best.measured is None or best.low is None or best.high is None:
        error = "" if reached.fit_error is None else f" (the model is {reached.fit_error:.1%} off on average)"
        return (
            f"the latency is {best.predicted:.3f} of dense as predicted for {reached.where}{error}, and was not "
            "measured: export the bundle and time it there with pruneport bench."
        )
    if abs(best.measured / reached.asked - 1) <= _CLOSE:
        return ""
    return (
        f"asked for {reached.asked:.4g} of the dense latency, measured {best.measured:.4f} ({best.low:.4f} to "
        f"{best.high:.4f}) in the best of {len(reached.rounds)} rounds: widths are multiples of {reached.step}."
    )
