"""A pruned network becomes a bundle: written, exported, verified, timed and reported."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import nn

from pruneport.bench.latency.measure import measure
from pruneport.bench.latency.records import Measured
from pruneport.commands.artifacts import Exported, export_dense, write_card, write_json, write_onnx_files, write_report
from pruneport.commands.configs import ShipConfig, SweepConfig
from pruneport.commands.starting import BundleStart, Start, check_composed
from pruneport.compress.calibration_inputs import calibration_inputs
from pruneport.compress.further import Origin
from pruneport.compress.prune import Pruned
from pruneport.compress.structure import Structure
from pruneport.export.bundle.bundle import BENCH, DENSE_ONNX, MODEL_ONNX, VERIFY, onnx_name, plan_hash
from pruneport.export.bundle.weights import check_reload, write_network
from pruneport.export.card.verdict import warnings_for
from pruneport.export.onnx.form import InputSizes
from pruneport.export.precisions.providers import asked_precisions
from pruneport.export.verification import Check, DenseSeen, Verification
from pruneport.export.verify import verify_files
from pruneport.models.record import Source
from pruneport.progress import Progress, Stage

__all__ = ["STAGES", "Filled", "OpenedDense", "fill_bundle", "fill_verified"]

STAGES = 5
"""How many it has: writing, exporting, verifying, timing, reporting."""


@dataclass
class OpenedDense:
    """A dense network with its source, exported and verified once, for every network that is pruned from it.

    Attributes:
        network: What dense.onnx is made of: the original, or what is pruned where the original cannot be had.
        source: The record of the original, with what is known of its images.
        start: What is pruned, untouched.
        origin: Where that came from, if it was compressed before.
        exported: ``network`` as ONNX, once it is.
        seen: What its verification found.
        structure: What was traced of ``start`` for a check, where it was.
    """

    network: nn.Module
    source: Source
    start: Start
    origin: Origin | None = None
    exported: Exported | None = None
    seen: DenseSeen = field(default_factory=DenseSeen)
    structure: Structure | None = None

    def said_of(self, pruned: Pruned) -> Pruned:
        """A pruned network whose plan says which network its dense.onnx is."""
        if self.origin is None or self.origin.original is not None:
            return pruned
        return replace(pruned, plan=replace(pruned.plan, dense_onnx="start"))


@dataclass(frozen=True, kw_only=True)
class Filled:
    """What was found of the network in a bundle."""

    verification: Verification
    measured: Measured
    warnings: tuple[str, ...]


def fill_bundle(
    staging: Path,
    dense: OpenedDense,
    pruned: Pruned,
    options: ShipConfig | SweepConfig,
    progress: Progress,
    max_drop: float | None = None,
) -> Filled:
    """Write everything that a bundle holds, but the manifest.

    Args:
        staging: The bundle's folder.
        dense: Is exported here where it was not.
        pruned: What was made of it.
        options: How it is exported, verified and timed.
        progress: Told what is being done.
        max_drop: The most points of top-1 that the user would lose, for the record; and int8 against fp32, on the
            calibration inputs: layers are left in float until it holds.

    Raises:
        InputError: torch cannot export it, or the images cannot be used.
        ProviderError: The provider does not run it.
    """
    verification, sizes = _write_verified(staging, dense, pruned, options, progress, max_drop)
    plan, verified = pruned.plan, verification.to_dict()
    progress(Stage("timing", still=True))
    others = {
        precision: (staging / onnx_name(DENSE_ONNX, precision), staging / onnx_name(MODEL_ONNX, precision))
        for precision in asked_precisions(options)[1:]
    }
    measured = measure(staging / DENSE_ONNX, staging / MODEL_ONNX, options, progress, others)
    timed = measured.to_dict()
    write_json(staging / BENCH, timed)
    progress(Stage("writing the report"))
    write_card(staging, plan, verified, timed, sizes)
    write_report(staging, plan, verified, timed, sizes)
    warnings = warnings_for(json.loads(plan.to_json()), verified, timed)
    return Filled(verification=verification, measured=measured, warnings=tuple(warnings))


def fill_verified(
    staging: Path,
    dense: OpenedDense,
    pruned: Pruned,
    options: ShipConfig | SweepConfig,
    progress: Progress,
    max_drop: float | None = None,
) -> Verification:
    """Write what a bundle holds before it is timed: networks, ONNX files, verify.json and the model card.

    Args and errors are those of ``fill_bundle``; nothing is timed.
    """
    verification, sizes = _write_verified(staging, dense, pruned, options, progress, max_drop)
    write_card(staging, pruned.plan, verification.to_dict(), sizes=sizes)
    return verification


def _write_verified(
    staging: Path,
    dense: OpenedDense,
    pruned: Pruned,
    options: ShipConfig | SweepConfig,
    progress: Progress,
    max_drop: float | None,
) -> tuple[Verification, InputSizes]:
    """Write the networks, their ONNX files and verify.json; and say which inputs the files take."""
    plan = pruned.plan
    progress(Stage("writing the pruned network"))
    write_network(staging, pruned.network, plan)
    if isinstance(dense.start, BundleStart):
        check_composed(staging, pruned.network, plan, dense.start)
    else:
        check_reload(staging, pruned.network, plan)
    reload = Check(name="reload", ok=True, detail="the network read back from disk is the pruned one, bit for bit")
    progress(Stage("exporting to ONNX"))
    if dense.exported is None:
        dense.exported = export_dense(dense.network, plan.source, options, progress)
    calibration = pruned.calibration
    if "int8" in options.precisions and calibration is None:
        calibration = calibration_inputs(options, dense.network, plan.source, progress, hold_out=True)
    networks = (dense.network, pruned.network)
    write_onnx_files(
        staging, plan_hash(staging), plan, networks, dense.exported, options.provider, calibration, progress, max_drop
    )
    progress(Stage("verifying"))
    verification = verify_files(
        staging,
        dense.network,
        pruned.network,
        plan.source.takes,
        options,
        [reload],
        comparable=plan.comparable,
        preprocessing=plan.source.preprocessing,
        precisions=asked_precisions(options),
        heldout=calibration.heldout if calibration else (),
        progress=progress,
        max_drop=max_drop,
        seen=dense.seen,
    )
    write_json(staging / VERIFY, verification.to_dict())
    return verification, dense.exported.fp32.sizes
