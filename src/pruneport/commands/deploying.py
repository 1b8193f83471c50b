"""export, verify and bench: from a bundle to files that are proved and timed."""

from __future__ import annotations

import json
from dataclasses import fields, replace

from pruneport.bench.latency.checks import check_required
from pruneport.bench.latency.measure import measure
from pruneport.commands.artifacts import export_dense, write_card, write_json, write_onnx_files, write_report
from pruneport.commands.configs import (
    BenchConfig,
    ExportConfig,
    VerifyConfig,
)
from pruneport.commands.records import (
    bundle_at,
    dense_of,
    input_sizes_of,
    open_networks,
    read_record,
    read_replaced,
    timed_precisions,
    with_earlier,
)
from pruneport.commands.results import BenchResult, ExportResult, VerifyResult
from pruneport.compress.activations.calibration import FOR_IMAGES, Batches, Calibration
from pruneport.compress.calibration_inputs import calibration_inputs
from pruneport.compress.options import CalibrationImages
from pruneport.compress.surgery.plan import preprocessing_of
from pruneport.errors import BundleError, CheckpointError, OutputError, SourceError
from pruneport.export.bundle.bundle import (
    BENCH,
    DATA,
    DENSE_ONNX,
    MODEL_ONNX,
    PRECISIONS,
    PREPROCESSOR,
    REPORT,
    VERIFY,
    check_hashes,
    onnx_name,
    plan_hash,
)
from pruneport.export.bundle.writing import update_bundle
from pruneport.export.card.verdict import warnings_for
from pruneport.export.onnx.embedding import embedding_for
from pruneport.export.onnx.form import check_form
from pruneport.export.precisions.providers import check_precisions
from pruneport.export.precisions.writing import check_int8_inputs, check_kind
from pruneport.export.verification import Check, require_parity
from pruneport.export.verify import check_prepared, require_same_normalisation, verify_files
from pruneport.models.options import PREPARATION, refuse_idle
from pruneport.models.preparation.resolve import resolve
from pruneport.models.record import Factory
from pruneport.progress import Note, Progress, Stage, numbered, silent

__all__ = ["bench", "export", "verify"]


def export(
    config: ExportConfig,
    progress: Progress = silent,
    command: str = "",
    factory: Factory | None = None,
    calibration: Calibration | None = None,
) -> ExportResult:
    """Write model.onnx and dense.onnx into the bundle; what was seen on the ones before leaves it.

    ``factory`` builds the dense network in place of what the configuration or the plan names. int8 is calibrated with
    ``calibration``, else with the images that the configuration names, else with synthetic inputs.

    Raises:
        InputError: The bundle, its source or the dense checkpoint cannot be used, or torch cannot export it.
    """
    check_form(config, one_input=False)
    check_precisions(config.precisions, config.provider, calibrated=config.calibration is not None)
    _refuse_idle(config)
    progress = numbered(progress, 3)
    progress(Stage("opening the bundle"))
    bundle, pruned, factory = open_networks(config, progress, factory)
    plan = bundle.plan
    if plan.dense_onnx == "start":
        raise BundleError(
            f"dense.onnx of {bundle.folder} is the network that was compressed further, which is not in the bundle. To "
            f"have other ONNX files, ship anew from the bundle that it was made from."
        )
    if config.embed_preprocessing is not None:  # of earlier versions' bundles, and networks in memory, known by itself
        plan = replace(plan, source=replace(plan.source, preprocessing=preprocessing_of(plan, pruned)))
        embedding_for(config.embed_preprocessing, plan.source.preprocessing, plan.source.input_shape)
    progress(Stage("building the dense network"))
    network = dense_of(bundle, factory, config.checkpoint)
    check_kind(config, network, plan.source.takes)
    check_int8_inputs(config, config, network, calibrated=calibration is not None)
    progress(Stage("exporting to ONNX"))
    dense = export_dense(network, plan.source, config, progress)
    if calibration is None and ("int8" in config.precisions or config.calibration is not None):
        source = replace(plan.source, preprocessing=preprocessing_of(plan, pruned))
        if config.embed_preprocessing is not None and source.preprocessing is not None:
            given = resolve(config, source.image_shape, source.preprocessing)
            require_same_normalisation(given, source.preprocessing)
        calibration = calibration_inputs(config, network, source, progress)
    files = [onnx_name(file, precision) for file in (DENSE_ONNX, MODEL_ONNX) for precision in PRECISIONS]
    kept = {
        onnx_name(file, precision) for file in (DENSE_ONNX, MODEL_ONNX) for precision in ("fp32", *config.precisions)
    }
    gone = [VERIFY, BENCH, REPORT, *(name for name in files if name not in kept), *(name + DATA for name in files)]
    if plan.source.preprocessing is None:
        gone.append(PREPROCESSOR)  # an earlier export's, which embedded it
    if outdated := [name for name in gone if (bundle.folder / name).exists()]:
        progress(Note(f"{', '.join(outdated)}: of the ONNX files that are there now; will go with them"))
    with update_bundle(bundle, command, outdated) as staging:
        write_onnx_files(
            staging,
            plan_hash(bundle.folder),
            plan,
            (network, pruned),
            dense,
            config.provider,
            calibration,
            progress,
        )
        sizes = {path.name: path.stat().st_size for path in sorted(staging.glob("*.onnx*"))}
        write_card(staging, bundle.plan, sizes=dense.fp32.sizes)
    return ExportResult(folder=bundle.folder, files=sizes)


def _refuse_idle(config: ExportConfig) -> None:
    """Refuse what is said of int8, and of the images that calibrate it, where there is none, or are none."""
    if "int8" not in config.precisions:
        names = ("provider", *(field.name for field in fields(CalibrationImages)))
        refuse_idle(config, names, "for int8", "Add int8 to `precisions`")
    elif config.calibration is None:
        refuse_idle(config, (*PREPARATION, "skip_unreadable"), *FOR_IMAGES)


def verify(
    config: VerifyConfig,
    progress: Progress = silent,
    command: str = "",
    factory: Factory | None = None,
    heldout: Batches = (),
) -> VerifyResult:
    """Check hashes, ONNX files, and parity between torch and ONNX Runtime; write verify.json into the bundle.

    The model card, and the report where there is one, are written anew. A bundle that cannot be written is checked all
    the same, and the result says so. ``factory`` builds the dense network in place of what the configuration or the
    plan names. Other precisions are compared with fp32 on the images, else on the ``heldout`` inputs.

    Raises:
        InputError: The bundle is damaged, or was not exported yet, or the checkpoint that was given cannot be used.
        ParityError: The outputs differ by more than the tolerance; verify.json says so.
    """
    check_prepared(config)
    progress = numbered(progress, 4)
    progress(Stage("opening the bundle"))
    bundle, pruned, factory = open_networks(config, progress, factory)
    hashes = Check(name="hashes", ok=True, detail=check_hashes(bundle))
    for precision in ("fp32", *bundle.precisions):
        bundle.path(onnx_name(MODEL_ONNX, precision)), bundle.path(onnx_name(DENSE_ONNX, precision))
    measured = read_record(bundle, BENCH)
    progress(Stage("building the dense network"))
    dense, why_no_dense = None, ""
    try:
        if bundle.plan.dense_onnx == "start":
            why_no_dense = "it is the network that was compressed further, which is not in the bundle"
        else:
            dense = dense_of(bundle, factory, config.checkpoint)
    except (CheckpointError, SourceError) as error:
        if config.checkpoint is not None:
            raise
        why_no_dense = str(error)
    progress(Stage("verifying"))
    verification = verify_files(
        bundle.folder,
        dense,
        pruned,
        bundle.plan.source.takes,
        config,
        [hashes],
        comparable=bundle.plan.comparable,
        why_no_dense=why_no_dense,
        preprocessing=preprocessing_of(bundle.plan, pruned),
        precisions=bundle.precisions,
        heldout=heldout,
        progress=progress,
    )
    progress(Stage("writing verify.json"))
    sizes = input_sizes_of(bundle)
    verified = with_earlier(verification.to_dict(), read_replaced(bundle, VERIFY, progress))
    recorded = True
    try:
        with update_bundle(bundle, command) as staging:
            write_json(staging / VERIFY, verified)
            write_card(staging, bundle.plan, verified, measured, sizes)
            if measured is not None and REPORT in bundle.files:
                write_report(staging, bundle.plan, verified, measured, sizes)
    except OutputError as error:
        recorded = False
        progress(Note(f"not recorded in the bundle: {error}"))
    require_parity(verification)
    warnings = warnings_for(json.loads(bundle.plan.to_json()), verified, measured)
    return VerifyResult(folder=bundle.folder, verification=verification, warnings=tuple(warnings), recorded=recorded)


def bench(config: BenchConfig, progress: Progress = silent, command: str = "") -> BenchResult:
    """Time dense against pruned and write bench.json into the bundle, with its report and model card anew.

    Raises:
        InputError: The bundle was not exported, or an option or the provider cannot be used.
        SpeedupError: ``require_speedup`` was not reached; bench.json is written all the same.
    """
    progress = numbered(progress, 2)
    bundle = bundle_at(config.folder, progress)
    dense, pruned = bundle.path(DENSE_ONNX), bundle.path(MODEL_ONNX)
    others = timed_precisions(bundle, config.precision, config.provider, progress)
    verified = read_record(bundle, VERIFY)
    progress(Stage("timing", still=True))
    measured = measure(dense, pruned, config, progress, others)
    timed = measured.to_dict()
    progress(Stage("writing the report"))
    sizes = input_sizes_of(bundle)
    with update_bundle(bundle, command) as staging:
        write_json(staging / BENCH, timed)
        write_card(staging, bundle.plan, verified, timed, sizes)
        write_report(staging, bundle.plan, verified, timed, sizes)
    if config.require_speedup is not None:
        check_required(measured, config.require_speedup)
    warnings = warnings_for(json.loads(bundle.plan.to_json()), verified, timed)
    return BenchResult(folder=bundle.folder, bench=measured, warnings=tuple(warnings))
