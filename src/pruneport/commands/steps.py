"""The verbs one by one: each takes its configuration and returns a typed result."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from pruneport.bench.latency.measure import check_required, measure
from pruneport.bench.latency.onnx_input import read_input
from pruneport.bench.report.graph import check_graph, write_graph
from pruneport.bench.report.graph_content import content_of_views
from pruneport.bench.report.plots import check_plot, sensitivity_plot
from pruneport.commands.artifacts import export_dense, write_card, write_json, write_onnx_pair, write_report
from pruneport.commands.configs import (
    BenchConfig,
    BundleOptions,
    CompressConfig,
    ExportConfig,
    InspectConfig,
    VerifyConfig,
)
from pruneport.commands.records import read_record, read_replaced
from pruneport.commands.results import BenchResult, CompressResult, ExportResult, InspectResult, VerifyResult
from pruneport.compress.allocation.cost import run_once
from pruneport.compress.allocation.target import check_round_to, target_of
from pruneport.compress.assessment import describe_groups
from pruneport.compress.options import PruneOptions
from pruneport.compress.pipeline import STAGES as COMPRESSION
from pruneport.compress.pipeline import calibration_inputs, check_inputs, compress_network
from pruneport.compress.prune import Pruned
from pruneport.compress.surgery.plan import preprocessing_of
from pruneport.errors import BundleError, CheckpointError, OutputError, SourceError
from pruneport.export.bundle.bundle import (
    BENCH,
    DENSE_ONNX,
    MODEL_ONNX,
    REPORT,
    VERIFY,
    Bundle,
    check_hashes,
    check_output,
    new_bundle,
    open_bundle,
    plan_hash,
    update_bundle,
)
from pruneport.export.bundle.weights import rebuild, write_network
from pruneport.export.card.verdict import warnings_for
from pruneport.export.onnx.exporter import OnnxNetwork, check_fixed_batch
from pruneport.export.options import ExportOptions, ParityOptions
from pruneport.export.parity import check_classes
from pruneport.export.verify import Check, open_parity_images, require_parity, verify_files
from pruneport.files import write_whole
from pruneport.models.factories import load_factory
from pruneport.models.outputs import main_output
from pruneport.models.preparation.resolve import prepared
from pruneport.models.record import Factory
from pruneport.models.source import build_dense, open_source
from pruneport.progress import Note, Progress, Stage, numbered, silent

__all__ = ["bench", "compress", "export", "inspect", "prune_source", "verify"]


def inspect(config: InspectConfig, progress: Progress = silent) -> InspectResult:
    """Find the network's coupled groups and what would go with each; with ``sensitivity``, draw what removal costs.

    With ``graph``, the groups are drawn, with the layers that hang on them.

    Raises:
        InputError: The source, its weights or the input shape cannot be used, or it cannot be traced; nothing is
            written.
    """
    check_round_to(config.round_to)
    if config.sensitivity:
        check_plot(config.plot)
    if config.graph is not None:
        check_graph(config.graph)
        if config.sensitivity and config.graph.resolve() == config.plot.resolve():
            raise OutputError(f"`graph` and `plot` both name {config.graph}; give two files.")
    progress = numbered(progress, 3 if config.sensitivity else 2)
    progress(Stage(f"building {config.source}"))
    network, source = open_source(config)
    options = PruneOptions(scope=config.scope, round_to=config.round_to, keep=config.keep)
    inputs = None
    if config.sensitivity:
        options = replace(options, criterion="block-hessian", ranking="sensitivity")
        progress(Stage("gathering calibration inputs"))
        inputs = calibration_inputs(config, network, source, progress)
    progress(Stage("measuring what removal costs" if config.sensitivity else "finding groups"))
    dense, views = describe_groups(network, source, options, inputs, progress)
    result = InspectResult(
        source=source.spec,
        dense=dense,
        groups=tuple(views),
        scope=config.scope,
        plot=config.plot if config.sensitivity else None,
        members=config.members,
        graph=config.graph,
    )
    if config.graph is not None:
        write_graph(config.graph, content_of_views(source.spec, views))
    if config.sensitivity:
        write_whole(config.plot, sensitivity_plot(result.to_dict()["groups"]))
    return result


def compress(config: CompressConfig, progress: Progress = silent, command: str = "") -> CompressResult:
    """Prune a network to its target and write the bundle.

    Raises:
        InputError: Something that was given cannot be used; nothing is written.
    """
    progress = numbered(progress, 1 + config.dry_export + COMPRESSION + 1)
    _, _, pruned = prune_source(config, progress)
    progress(Stage(f"writing {config.out}"))
    with new_bundle(config.out, config.overwrite, command) as staging:
        write_network(staging, pruned.network, pruned.plan)
        write_card(staging, pruned.plan)
    warnings = warnings_for(json.loads(pruned.plan.to_json()), None, None)
    return CompressResult(folder=config.out, plan=pruned.plan, warnings=tuple(warnings))


def export(config: ExportConfig, progress: Progress = silent, command: str = "") -> ExportResult:
    """Write model.onnx and dense.onnx into the bundle; what was seen on the ones before leaves it.

    Raises:
        InputError: The bundle, its source or the dense checkpoint cannot be used, or torch cannot export it.
    """
    check_fixed_batch(config.batch_size_fixed)
    progress = numbered(progress, 3)
    progress(Stage("opening the bundle"))
    bundle, pruned, factory = _open(config)
    progress(Stage("building the dense network"))
    network = _dense(bundle, factory, config.checkpoint)
    progress(Stage("exporting to ONNX"))
    dense = export_dense(network, bundle.plan.source, config.batch_size_fixed, progress)
    if outdated := [name for name in (VERIFY, BENCH, REPORT) if (bundle.folder / name).exists()]:
        progress(Note(f"{', '.join(outdated)}: of the ONNX files that are there now; will go with them"))
    with update_bundle(bundle, command, outdated) as staging:
        write_onnx_pair(staging, plan_hash(bundle.folder), bundle.plan, dense, pruned, progress)
        files = {path.name: path.stat().st_size for path in sorted(staging.iterdir())}
        write_card(staging, bundle.plan, batch=dense.batch)
    return ExportResult(folder=config.folder, files=files)


def verify(config: VerifyConfig, progress: Progress = silent, command: str = "") -> VerifyResult:
    """Check hashes, ONNX files, and parity between torch and ONNX Runtime; write verify.json into the bundle.

    The model card, and the report where there is one, are written anew. A bundle that cannot be written is checked all
    the same, and the result says so.

    Raises:
        InputError: The bundle is damaged, or was not exported yet, or the checkpoint that was given cannot be used.
        ParityError: The outputs differ by more than the tolerance; verify.json says so.
    """
    progress = numbered(progress, 4)
    progress(Stage("opening the bundle"))
    bundle, pruned, factory = _open(config)
    hashes = Check(name="hashes", ok=True, detail=check_hashes(bundle))
    bundle.path(MODEL_ONNX), bundle.path(DENSE_ONNX)
    measured = read_record(bundle, BENCH)
    progress(Stage("building the dense network"))
    dense, why_no_dense = None, ""
    try:
        dense = _dense(bundle, factory, config.checkpoint)
    except (CheckpointError, SourceError) as error:
        if config.checkpoint is not None:
            raise
        why_no_dense = str(error)
    progress(Stage("verifying"))
    verification = verify_files(
        bundle.folder,
        dense,
        pruned,
        bundle.plan.source.input_shape,
        config,
        [hashes],
        comparable=bundle.plan.training is None,
        why_no_dense=why_no_dense,
        preprocessing=preprocessing_of(bundle.plan, pruned),
        progress=progress,
    )
    progress(Stage("writing verify.json"))
    verified = _with_earlier(verification.to_dict(), read_replaced(bundle, VERIFY, progress))
    recorded = True
    try:
        with update_bundle(bundle, command) as staging:
            write_json(staging / VERIFY, verified)
            write_card(staging, bundle.plan, verified, measured, _fixed_batch(bundle))
            if measured is not None and REPORT in bundle.files:
                write_report(staging, bundle.plan, verified, measured, _fixed_batch(bundle))
    except OutputError as error:
        recorded = False
        progress(Note(f"not recorded in the bundle: {error}"))
    require_parity(verification)
    warnings = warnings_for(json.loads(bundle.plan.to_json()), verified, measured)
    return VerifyResult(folder=config.folder, verification=verification, warnings=tuple(warnings), recorded=recorded)


def bench(config: BenchConfig, progress: Progress = silent, command: str = "") -> BenchResult:
    """Time dense against pruned and write bench.json into the bundle, with its report and model card anew.

    Raises:
        InputError: The bundle was not exported, or an option or the provider cannot be used.
        SpeedupError: ``require_speedup`` was not reached; bench.json is written all the same.
    """
    progress = numbered(progress, 2)
    bundle = _bundle_at(config.folder)
    dense, pruned = bundle.path(DENSE_ONNX), bundle.path(MODEL_ONNX)
    verified = read_record(bundle, VERIFY)
    progress(Stage("timing", still=True))
    measured = measure(dense, pruned, config, progress)
    progress(Stage("writing the report"))
    fixed = _fixed_batch(bundle)
    with update_bundle(bundle, command) as staging:
        write_json(staging / BENCH, measured)
        write_card(staging, bundle.plan, verified, measured, fixed)
        write_report(staging, bundle.plan, verified, measured, fixed)
    if config.require_speedup is not None:
        check_required(measured, config.require_speedup)
    warnings = warnings_for(json.loads(bundle.plan.to_json()), verified, measured)
    return BenchResult(folder=config.folder, bench=measured, warnings=tuple(warnings))


def _bundle_at(folder: Path) -> Bundle:
    """Open a bundle; where a file in one or a network was named in its place, say what to name.

    Raises:
        BundleError: There is no bundle, or it is damaged.
    """
    if folder.is_file():
        raise BundleError(f"{folder} is a file; expected the folder of a bundle: {folder.parent}, if it lies in one.")
    if ":" in str(folder) and not folder.exists():
        raise BundleError(
            f"{folder} names a network; expected the folder of a bundle, such as half, written by: "
            f"pruneport compress {folder} --flops 0.5 --out half"
        )
    return open_bundle(folder)


def _fixed_batch(bundle: Bundle) -> int | None:
    """The one batch size that the bundle's ONNX files take; None where they take any."""
    batch = read_input(bundle.path(MODEL_ONNX)).batch
    return batch if isinstance(batch, int) else None


def _with_earlier(verified: dict[str, Any], earlier: dict[str, Any] | None) -> dict[str, Any]:
    """Keep what was counted on images before, where this time there were none: the ONNX files are the same."""
    kept = {name: earlier[name] for name in ("accuracy", "agreement") if earlier and earlier.get(name)}
    counted = verified["accuracy"] or verified["agreement"]
    return verified if counted else verified | kept


def prune_source(config: CompressConfig, progress: Progress) -> tuple[nn.Module, OnnxNetwork | None, Pruned]:
    """Open the source, prune it and recover accuracy; what can be checked before any work is.

    Returns:
        The dense network, untouched; the same as ONNX, where the configuration is one that exports, and not only at
        the end; and the pruned one with its plan.
    """
    check_output(config.out, config.overwrite)
    target_of(config)
    fixed = config.batch_size_fixed if isinstance(config, ExportOptions) else None
    check_fixed_batch(fixed)
    progress(Stage(f"building {config.source}"))
    dense, source = open_source(config)
    source = prepared(source, config)
    if isinstance(config, ParityOptions):
        images = open_parity_images(config, source.input_shape, fixed, source.preprocessing)
        if images is not None:
            images.check_readable()
            check_classes(images, tuple(main_output(run_once(dense, source.input_shape)).shape))
            source = replace(source, class_names=source.class_names or images.classes)
    check_inputs(config, dense, source)
    exported = None
    if config.dry_export:
        progress(Stage("exporting the dense network"))
        exported = export_dense(dense, source, fixed, progress)
    if not isinstance(config, ExportOptions):
        exported = None  # only to see that it can be done
    return dense, exported, compress_network(dense, source, config, progress)


def _open(config: BundleOptions) -> tuple[Bundle, nn.Module, Factory | None]:
    """The bundle, its pruned network, and the factory that builds the dense one."""
    bundle = _bundle_at(config.folder)
    factory = load_factory(config.factory) if config.factory else None
    if factory is None and config.trust_source and bundle.plan.source.library is None:
        factory = load_factory(bundle.plan.source.spec)
    return bundle, rebuild(bundle, factory), factory


def _dense(bundle: Bundle, factory: Factory | None, checkpoint: Path | None) -> nn.Module:
    """Build the bundle's dense network, its weights from ``checkpoint`` where that was moved.

    Raises:
        CheckpointError: The checkpoint is not there, has another content, or is not wanted.
        SourceError: The factory cannot be found or fails.
    """
    source = bundle.plan.source
    if checkpoint is not None:
        if source.checkpoint is None:
            raise CheckpointError(f"{bundle.folder} was not made from a checkpoint; leave out `checkpoint`.")
        source = replace(source, checkpoint=os.path.realpath(checkpoint))
    return build_dense(source, factory)
