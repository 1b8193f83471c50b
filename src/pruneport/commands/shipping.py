"""The main job: from a checkpoint to a verified, measured artifact."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from pruneport.bench.latency.measure import check_required, measure, preflight
from pruneport.commands.artifacts import export_dense, write_card, write_json, write_onnx_pair, write_report
from pruneport.commands.compressing import prune_source
from pruneport.commands.configs import ShipConfig
from pruneport.commands.results import ShipResult
from pruneport.commands.timing.loop import is_latency
from pruneport.compress.pipeline import STAGES as COMPRESSION
from pruneport.compress.prune import Pruned
from pruneport.export.bundle.bundle import BENCH, DENSE_ONNX, MODEL_ONNX, VERIFY, plan_hash
from pruneport.export.bundle.weights import check_reload, write_network
from pruneport.export.bundle.writing import new_bundle
from pruneport.export.card.verdict import warnings_for
from pruneport.export.verify import Check, require_parity, verify_files
from pruneport.progress import Progress, Stage, numbered, silent

__all__ = ["ship"]

_STAGES = 1 + COMPRESSION + 5  # building, the compression's own, writing, exporting, verifying, timing, reporting


def ship(config: ShipConfig, progress: Progress = silent, command: str = "") -> ShipResult:
    """Compress, export, verify, bench and report; the bundle appears when all of it is done.

    Raises:
        InputError: Something that was given cannot be used; nothing is written.
        ParityError: The outputs differ by more than the tolerance; the bundle holds the evidence.
        SpeedupError: ``require_speedup`` was not reached; the bundle holds the evidence.
    """
    latency = is_latency(config)
    progress = numbered(progress, _STAGES + config.dry_export + latency)
    if latency and config.latency_batch not in config.batches and config.batch_size_fixed is None:
        config = replace(config, batches=tuple(sorted({*config.batches, config.latency_batch})))
    preflight(config, config.batch_size_fixed)
    dense, exported, pruned = prune_source(config, progress)
    plan = pruned.plan
    with new_bundle(config.out, config.overwrite, command) as staging:
        progress(Stage("writing the pruned network"))
        write_network(staging, pruned.network, plan)
        reload = _check_reload(staging, pruned)
        progress(Stage("exporting to ONNX"))
        if exported is None:
            exported = export_dense(dense, plan.source, config, progress)
        write_onnx_pair(staging, plan_hash(staging), plan, exported, pruned.network, progress)
        progress(Stage("verifying"))
        verification = verify_files(
            staging,
            dense,
            pruned.network,
            plan.source.input_shape,
            config,
            [reload],
            preprocessing=plan.source.preprocessing,
            progress=progress,
        )
        verified = verification.to_dict()
        write_json(staging / VERIFY, verified)
        progress(Stage("timing", still=True))
        measured = measure(staging / DENSE_ONNX, staging / MODEL_ONNX, config, progress)
        timed = measured.to_dict()
        write_json(staging / BENCH, timed)
        progress(Stage("writing the report"))
        write_card(staging, plan, verified, timed, exported.batch)
        write_report(staging, plan, verified, timed, exported.batch)
    require_parity(verification)
    if config.require_speedup is not None:
        check_required(measured, config.require_speedup)
    warnings = tuple(warnings_for(json.loads(plan.to_json()), verified, timed))
    return ShipResult(
        folder=config.out,
        plan=plan,
        verification=verification,
        bench=measured,
        warnings=warnings,
        network=pruned.network,
    )


def _check_reload(folder: Path, pruned: Pruned) -> Check:
    """Load the network back from disk and compare it bit for bit with the one in memory."""
    check_reload(folder, pruned.network, pruned.plan)
    return Check(name="reload", ok=True, detail="the network read back from disk is the pruned one, bit for bit")
