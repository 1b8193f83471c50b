"""The main job: from a checkpoint to a verified, measured artifact."""

from __future__ import annotations

from pruneport.bench.latency.checks import check_required
from pruneport.bench.latency.measure import preflight
from pruneport.commands.bundling import STAGES as BUNDLING
from pruneport.commands.bundling import Filled, fill_bundle
from pruneport.commands.compressing import prune_source, saved_beside
from pruneport.commands.configs import ShipConfig
from pruneport.commands.results import ShipResult
from pruneport.commands.sweeping.search import has_target, search
from pruneport.commands.timing.asked import at_latency_batch, is_latency
from pruneport.compress.pipeline import STAGES as COMPRESSION
from pruneport.export.accuracy import require_accuracy
from pruneport.export.bundle.writing import check_output, new_bundle
from pruneport.export.precisions.providers import check_precisions
from pruneport.export.verification import require_parity
from pruneport.progress import Progress, numbered, silent

__all__ = ["ship"]

_STAGES = 1 + COMPRESSION + BUNDLING  # building, then theirs


def ship(config: ShipConfig, progress: Progress = silent, command: str = "") -> ShipResult:
    """Compress, export, verify, bench and report; the bundle appears when all of it is done.

    With ``max_drop`` and no target, the fastest network that loses no more is searched for.

    Raises:
        InputError: Something that was given cannot be used; nothing is written.
        ParityError: The outputs differ by more than the tolerance; the bundle holds the evidence.
        SpeedupError: ``require_speedup`` was not reached; the bundle holds the evidence.
        AccuracyError: More than ``max_drop`` was lost; the bundle holds the evidence. Or no network that loses so
            little was found; then there is none.
    """
    searched = config.max_drop is not None and not has_target(config)
    latency = not searched and is_latency(config)
    if latency:
        config = at_latency_batch(config)
    check_precisions(config.precisions, config.provider)
    preflight(config, config.batch_size_fixed)
    if searched and config.max_drop is not None:
        pruned, filled = search(config, config.max_drop, progress, command)
    else:
        progress = numbered(progress, _STAGES + config.dry_export + latency)
        check_output(config.out, config.overwrite)
        with saved_beside(config.out, config, config) as saved:
            dense, pruned = prune_source(config, progress, config.max_drop, saved)
            with new_bundle(config.out, config.overwrite, command) as staging:
                filled = fill_bundle(staging, dense, pruned, config, progress, config.max_drop)
    _require(config, filled)
    return ShipResult(
        folder=config.out,
        plan=pruned.plan,
        verification=filled.verification,
        bench=filled.measured,
        warnings=filled.warnings,
        network=pruned.network,
    )


def _require(config: ShipConfig, filled: Filled) -> None:
    """Raise where a check failed."""
    require_parity(filled.verification)
    if config.require_speedup is not None:
        check_required(filled.measured, config.require_speedup)
    if config.max_drop is not None:
        require_accuracy(filled.verification.accuracy, config.max_drop)
