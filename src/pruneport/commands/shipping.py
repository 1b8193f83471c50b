"""The main job: from a checkpoint to a verified, measured artifact."""

from __future__ import annotations

import json
from pathlib import Path

from pruneport.bench.latency.measure import check_required, measure, preflight
from pruneport.commands.artifacts import export_dense, write_card, write_json, write_onnx_files, write_report
from pruneport.commands.compressing import prune_source
from pruneport.commands.configs import ShipConfig
from pruneport.commands.results import ShipResult
from pruneport.compress.pipeline import STAGES as COMPRESSION
from pruneport.compress.pipeline import calibration_inputs
from pruneport.compress.prune import Pruned
from pruneport.export.bundle.bundle import BENCH, DENSE_ONNX, MODEL_ONNX, VERIFY, onnx_name, plan_hash
from pruneport.export.bundle.weights import check_reload, write_network
from pruneport.export.bundle.writing import new_bundle
from pruneport.export.card.verdict import warnings_for
from pruneport.export.precisions.providers import asked_precisions, check_precisions
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
    progress = numbered(progress, _STAGES + config.dry_export)
    check_precisions(config.precisions, config.provider)
    preflight(config, config.batch_size_fixed)
    dense, exported, pruned = prune_source(config, progress)
    plan, calibration = pruned.plan, pruned.calibration
    with new_bundle(config.out, config.overwrite, command) as staging:
        progress(Stage("writing the pruned network"))
        write_network(staging, pruned.network, plan)
        reload = _check_reload(staging, pruned)
        progress(Stage("exporting to ONNX"))
        if exported is None:
            exported = export_dense(dense, plan.source, config, progress)
        if "int8" in config.precisions and calibration is None:
            calibration = calibration_inputs(config, dense, plan.source, progress, hold_out=True)
        networks = (dense, pruned.network)
        write_onnx_files(staging, plan_hash(staging), plan, networks, exported, config.provider, calibration, progress)
        progress(Stage("verifying"))
        verification = verify_files(
            staging,
            dense,
            pruned.network,
            plan.source.input_shape,
            config,
            [reload],
            preprocessing=plan.source.preprocessing,
            precisions=asked_precisions(config),
            heldout=calibration.heldout if calibration else (),
            progress=progress,
        )
        verified = verification.to_dict()
        write_json(staging / VERIFY, verified)
        progress(Stage("timing", still=True))
        others = {
            precision: (staging / onnx_name(DENSE_ONNX, precision), staging / onnx_name(MODEL_ONNX, precision))
            for precision in asked_precisions(config)[1:]
        }
        measured = measure(staging / DENSE_ONNX, staging / MODEL_ONNX, config, progress, others)
        timed = measured.to_dict()
        write_json(staging / BENCH, timed)
        progress(Stage("writing the report"))
        write_card(staging, plan, verified, timed, exported.fp32.batch, config.embed_preprocessing)
        write_report(staging, plan, verified, timed, exported.fp32.batch, config.embed_preprocessing)
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
