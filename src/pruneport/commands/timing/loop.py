"""The closed loop of a latency target: solve, export, time against dense, fit again."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from pruneport.bench.latency.timer import DenseTimer
from pruneport.bench.options import LatencyOptions
from pruneport.bench.timings.calibrate import rounds_for
from pruneport.commands.artifacts import export_dense
from pruneport.commands.timing.asked import is_latency, timed_in
from pruneport.commands.timing.measuring import DenseFile, export_form, width_step_on
from pruneport.commands.timing.rounds import CLOSE, choose, solve_rounds, time_surely
from pruneport.commands.timing.tables import Timings, form_on, timings_for
from pruneport.compress.allocation.latency_model import fit_latency
from pruneport.compress.allocation.target import target_of
from pruneport.compress.assessment import Assessment
from pruneport.compress.options import CompressOptions
from pruneport.compress.prune import Pruned, prune
from pruneport.compress.records import LatencyReached
from pruneport.compress.structure import reasons_with
from pruneport.errors import TargetError
from pruneport.export.onnx.onnx_file import write_onnx
from pruneport.export.onnx.onnx_network import OnnxNetwork
from pruneport.export.options import DEFAULTS, ExportOptions
from pruneport.models.record import Source
from pruneport.progress import Note, Progress, Stage

__all__ = ["LatencyPruner"]


@dataclass(frozen=True, kw_only=True)
class LatencyPruner:
    """A ``Pruner`` that meets a latency target; any other target it leaves to ``prune``.

    Attributes:
        where: Where the latency holds, and where timings are kept.
        form: What the ONNX files are like.
        exported: The dense network as ONNX, where it is at hand.
        original: The dense network that latencies are shares of, where one that was compressed before is pruned.
    """

    where: LatencyOptions
    form: ExportOptions = DEFAULTS
    exported: OnnxNetwork | None = None
    original: nn.Module | None = None

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
        form = replace(export_form(network, source, self.form), precisions=("fp32",))
        with tempfile.TemporaryDirectory() as folder:
            exported = self.exported or export_dense(self.original or network, source, form, progress).fp32
            original = path = Path(folder) / "dense.onnx"
            exported.save(path, {})
            if self.original is not None:
                path = Path(folder) / "start.onnx"
                write_onnx(network, source.takes, path, {}, exported.options, source.preprocessing)
            dense = DenseFile(network=network, source=source, path=path, form=exported.options)
            timings = timings_for(dense, assessed, timed_in(self.where, self.form), progress)
            return _meet(dense, original, timings, options, assessed, progress)


def _meet(
    dense: DenseFile,
    original: Path,
    timings: Timings,
    options: CompressOptions,
    assessed: Assessment,
    progress: Progress,
) -> Pruned:
    """Solve, export, time and fit again; the round that meets the target best is the result.

    Shares are of the latency of ``original``, which is the dense file but where that was compressed before.
    """
    table = timings.table
    place = table.place
    timer = None if timings.here is None else DenseTimer(original, timings.here, place.batch, place.precision)
    whole, dense_ms = 1.0, table.dense_ms
    if original != dense.path:
        assert timer is not None  # see ``refuse_latency``
        whole, dense_ms = _left_of(original, dense, timer, progress)
    elif timer is not None:
        dense_ms = timer.time(original, max(2, rounds_for(dense_ms, timer.options.repeats))).dense_ms
    share = _share_asked(options, dense_ms, whole)
    allowed = replace(options, latency=share, latency_ms=None, round_to=width_step_on(table.staircase, options))
    assessed = replace(assessed, reasons=reasons_with(dense.network, assessed, allowed))
    form = form_on(table.staircase, assessed, dense.network)
    timed = [entry for entry in timings.to_fit(whole) if form.presence.owners or entry.kept.all()]
    first = fit_latency(form, timed, whole)
    rounds = solve_rounds(dense, timer, allowed, share, assessed, first, progress)
    chosen = choose(rounds, share)
    reached = LatencyReached(
        asked=share,
        asked_ms=options.latency_ms,
        where=str(place),
        clock=table.clock,
        batch=place.batch,
        precision=place.precision,
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


def _left_of(original: Path, dense: DenseFile, timer: DenseTimer, progress: Progress) -> tuple[float, float]:
    """What a network that was compressed before takes, as a share of its original's latency, and that in ms.

    Raises:
        TargetError: The timer is too noisy.
    """
    progress("timing what was compressed before against its original")
    timed = time_surely(timer, dense.path, progress)
    progress(Note(f"what was compressed before takes {timed.share:.3f} of the latency of its original"))
    return timed.share, timed.dense_ms


def _share_asked(options: CompressOptions, dense_ms: float, whole: float) -> float:
    """The target as a share of the dense latency, of which the network that is pruned takes ``whole``.

    Raises:
        TargetError: It is as fast already.
    """
    name, value = target_of(options)
    if name == "latency_ms" and value >= dense_ms:
        raise TargetError(
            f"`latency_ms` is {value:g}, and the dense network takes {dense_ms:.3g} ms; expected fewer milliseconds."
        )
    share = value if name == "latency" else value / dense_ms
    if share >= whole:
        raise TargetError(
            f"`{name}` is {value:g}, and what was compressed before takes {whole * dense_ms:.3g} ms, {whole:.3f} of "
            "its original's latency, already; give less: shares are of the original."
        )
    return share


def _said(reached: LatencyReached) -> str:
    """What a user should know of the target; empty where it is met."""
    best = reached.rounds[reached.chosen]
    if best.measured is None or best.low is None or best.high is None:
        error = "" if reached.fit_error is None else f" (the model is {reached.fit_error:.1%} off on average)"
        return (
            f"the latency is {best.predicted:.3f} of dense as predicted for {reached.where}{error}, and was not "
            "measured: export the bundle and time it there with pruneport bench."
        )
    faults = []
    if abs(best.measured / reached.asked - 1) > CLOSE:
        faults.append(f"widths are multiples of {reached.step}")
    if (best.high - best.low) / 2 > CLOSE * best.measured:
        faults.append("the machine is too noisy to tell more: time it again on an idle one with pruneport bench")
    if not faults:
        return ""
    return (
        f"asked for {reached.asked:.4g} of the dense latency, measured {best.measured:.4f} ({best.low:.4f} to "
        f"{best.high:.4f}) in the best of {len(reached.rounds)} rounds: {'; '.join(faults)}."
    )
