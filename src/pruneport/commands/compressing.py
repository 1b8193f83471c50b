"""inspect and compress: from a source to a bundle with a plan."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path

from pruneport.bench.latency.measure import preflight
from pruneport.bench.options import BenchOptions
from pruneport.bench.report.graph import check_graph, write_graph
from pruneport.bench.report.graph_content import content_of_views
from pruneport.bench.report.plots import sensitivity_plot
from pruneport.commands.artifacts import export_dense, write_card
from pruneport.commands.bundling import OpenedDense
from pruneport.commands.configs import (
    CompressConfig,
    InspectConfig,
    StartOptions,
)
from pruneport.commands.results import CompressResult, InspectResult
from pruneport.commands.starting import BundleStart, Start, check_composed, open_start, origin_of
from pruneport.commands.timing.asked import check_latency, is_latency, refuse_latency
from pruneport.commands.timing.loop import LatencyPruner
from pruneport.commands.timing.tables import check_given
from pruneport.compress.activations.calibration import FOR_IMAGES, Calibration
from pruneport.compress.activations.memory import memory_bounded
from pruneport.compress.allocation.cost import Cost, run_once
from pruneport.compress.allocation.target import check_round_to, target_of
from pruneport.compress.assessment import GroupView, describe_groups
from pruneport.compress.calibration_inputs import calibration_inputs
from pruneport.compress.devices import check_memory_bound, find_device, in_full_precision, with_smaller_batches
from pruneport.compress.further import check_below
from pruneport.compress.importance.criteria import name_of
from pruneport.compress.options import CalibrationImages, CompressOptions, PruneOptions
from pruneport.compress.pipeline import STAGES as COMPRESSION
from pruneport.compress.pipeline import check_inputs, compress_network
from pruneport.compress.prune import Pruned
from pruneport.compress.recovery.imitation_state import UnfinishedFile
from pruneport.compress.recovery.recover import imitates
from pruneport.compress.state_file import plain_settings, state_place
from pruneport.errors import OutputError
from pruneport.export.accuracy import check_classes, check_labelled, check_max_drop
from pruneport.export.bundle.weights import write_network
from pruneport.export.bundle.writing import check_output, new_bundle
from pruneport.export.card.verdict import warnings_for
from pruneport.export.onnx.embedding import embedding_for
from pruneport.export.onnx.exporter import fitted_options
from pruneport.export.onnx.form import check_form
from pruneport.export.options import DEFAULTS, ExportOptions, ParityOptions
from pruneport.export.precisions.writing import check_int8_inputs, check_kind
from pruneport.export.verify import open_parity_images
from pruneport.files import check_file, write_whole
from pruneport.models.options import PREPARATION, refuse_idle
from pruneport.models.outputs import main_output
from pruneport.models.preparation.resolve import prepared
from pruneport.progress import Note, Progress, Stage, numbered, silent

__all__ = ["compress", "inspect", "open_dense", "prune_source", "saved_beside"]

_NO_SETTINGS = ("out", "overwrite", "dry_export", "latency_cache")
"""What two runs of one compression may differ in."""


def inspect(config: InspectConfig, progress: Progress = silent, opened: Start | None = None) -> InspectResult:
    """Find the network's coupled groups and what would go with each; with ``sensitivity``, draw what removal costs.

    With ``graph``, the groups are drawn, with the layers that hang on them. ``opened`` is looked at in place of what
    the configuration names.

    Raises:
        InputError: The source, its weights or the input shape cannot be used, or it cannot be traced; nothing is
            written.
    """
    check_round_to(config.round_to)
    _refuse_idle(config)
    device = find_device(config.accelerator)
    check_memory_bound(config.memory)
    if config.sensitivity:
        check_file(config.plot, "plot", (".svg",))
    if config.graph is not None:
        check_graph(config.graph)
        if config.sensitivity and config.graph.resolve() == config.plot.resolve():
            raise OutputError(f"`graph` and `plot` both name {config.graph}; give two files.")
    progress = numbered(progress, 3 if config.sensitivity else 2)
    progress(Stage(f"building {config.source}"))
    start = opened or open_start(config, progress)
    network, source = start.network, start.source
    if isinstance(start, BundleStart):
        said = f"{start.name} keeps {start.plan.macs_kept:.3g} of the compute of {source.spec}"
        progress(Note(f"{said}; widths, MACs and parameters below are the bundle's"))
    options = PruneOptions(scope=config.scope, round_to=config.round_to, keep=config.keep)
    inputs = None
    if config.sensitivity:
        options = replace(options, criterion="block-hessian", ranking="sensitivity")
        progress(Stage("gathering calibration inputs"))
        inputs = calibration_inputs(config, network, source, progress)
    progress(Stage("measuring what removal costs" if config.sensitivity else "finding groups"))

    def described(given: Calibration | None) -> tuple[Cost, list[GroupView]]:
        return describe_groups(network, source, options, given, progress, device)

    with in_full_precision(), memory_bounded(config.memory, device):
        dense, views = described(None) if inputs is None else with_smaller_batches(described, inputs, progress)[0]
    result = InspectResult(
        source=start.name if isinstance(start, BundleStart) else source.spec,
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


def _refuse_idle(config: InspectConfig) -> None:
    """Refuse what is said of the curves, and of the images behind them, where there are none."""
    if not config.sensitivity:
        names = ("plot", *(field.name for field in fields(CalibrationImages)))
        refuse_idle(config, names, "for the curves of `sensitivity`", "Give `sensitivity`")
    elif config.calibration is None:
        refuse_idle(config, (*PREPARATION, "skip_unreadable"), *FOR_IMAGES)


def compress(config: CompressConfig, progress: Progress = silent, command: str = "") -> CompressResult:
    """Prune a network to its target and write the bundle.

    Raises:
        InputError: Something that was given cannot be used; nothing is written.
    """
    progress = numbered(progress, 1 + config.dry_export + COMPRESSION + is_latency(config) + 1)
    check_output(config.out, config.overwrite)
    with saved_beside(config.out, config, config) as saved:
        dense, pruned = prune_source(config, progress, saved=saved)
        progress(Stage(f"writing {config.out}"))
        with new_bundle(config.out, config.overwrite, command) as staging:
            write_network(staging, pruned.network, pruned.plan)
            if isinstance(dense.start, BundleStart):
                check_composed(staging, pruned.network, pruned.plan, dense.start)
            write_card(staging, pruned.plan)
    warnings = warnings_for(json.loads(pruned.plan.to_json()), None, None)
    return CompressResult(folder=config.out, plan=pruned.plan, warnings=tuple(warnings))


@contextmanager
def saved_beside(out: Path, config: StartOptions, asked: CompressOptions) -> Iterator[UnfinishedFile | None]:
    """Where a recovery that imitates is saved until the bundle is there, and goes on from if it was stopped.

    Args:
        out: The bundle; the state file is OUT.imitation beside it.
        config: Where the network comes from, and how latency is timed.
        asked: How it is pruned and recovered.

    Yields:
        None for recoveries that do not imitate: they are done in minutes.

    Raises:
        InUseError: Another process works towards the same bundle.
    """
    if not imitates(asked):
        yield None
        return
    options = {
        field.name: getattr(asked if hasattr(asked, field.name) else config, field.name)
        for field in fields(CompressConfig)
        if field.name not in _NO_SETTINGS
    }
    with state_place(out, "imitation") as path:
        settings = plain_settings(options | {"criterion": name_of(asked.criterion)})
        yield UnfinishedFile(path=path, settings=settings)
        path.unlink(missing_ok=True)


def prune_source(
    config: CompressConfig,
    progress: Progress,
    max_drop: float | None = None,
    saved: UnfinishedFile | None = None,
) -> tuple[OpenedDense, Pruned]:
    """Open the source, prune it and recover accuracy; what can be checked before any work is.

    Args:
        config: The source, and how it is pruned.
        progress: Told what is being done.
        max_drop: The most points of top-1 to lose, which only labelled images can tell.
        saved: Where a recovery that imitates is saved.

    Returns:
        The dense network, untouched, exported where the configuration is one that exports, and not only at the end; and
        the pruned one with its plan.
    """
    target, _ = target_of(config)
    form = config if isinstance(config, ExportOptions) else DEFAULTS
    check_form(form)
    check_latency(config, form, target)
    dense = open_dense(config, config, progress, max_drop)
    start, origin = dense.start, dense.origin
    if isinstance(start, BundleStart):
        refuse_latency(target, config, start.name, origin.original if origin else None)
        check_below(config, start.plan, start.name)
    dense.structure = check_given(start.network, dense.source, config, config, progress)
    exported = None
    if config.dry_export:
        progress(Stage("exporting the dense network"))
        exported = export_dense(dense.network, dense.source, form, progress)
    if isinstance(config, ExportOptions):
        dense.exported = exported  # else only to see that it can be done
    pruner = LatencyPruner(
        where=config,
        form=form,
        exported=exported.fp32 if exported else None,
        original=origin.original if origin else None,
    )
    pruned = compress_network(start.network, dense.source, config, progress, origin, pruner, dense.structure, saved)
    return dense, dense.said_of(pruned) if isinstance(config, ExportOptions) else pruned


def open_dense(
    config: StartOptions, asked: CompressOptions, progress: Progress, max_drop: float | None = None
) -> OpenedDense:
    """Open the source, and check without any work that the images fit it and that the options can be met.

    Args:
        config: Where the network comes from; where it is exported and verified, how, too.
        asked: How it is pruned.
        progress: Told what is being done.
        max_drop: The most points of top-1 to lose, which only labelled images can tell.

    Raises:
        InputError: Something that was given cannot be used.
    """
    form = config if isinstance(config, ExportOptions) else DEFAULTS
    check_form(form)
    if max_drop is not None:
        check_max_drop(max_drop)
    progress(Stage(f"building {config.source}"))
    start = open_start(config, progress, moved=True)
    origin = origin_of(start, config.checkpoint, progress) if isinstance(start, BundleStart) else None
    network = start.network if origin is None or origin.original is None else origin.original
    source = prepared(start.source, asked)
    embedding_for(form.embed_preprocessing, source.preprocessing, source.input_shape)  # named before any work
    fixed = form.batch_size_fixed
    if isinstance(config, ExportOptions):
        fixed = fitted_options(network, source.takes, form).batch_size_fixed
    if isinstance(config, BenchOptions) and fixed != form.batch_size_fixed:
        preflight(config, fixed)
    images = None
    if isinstance(config, ParityOptions):
        images = open_parity_images(config, source.takes, fixed, source.preprocessing)
    if images is not None:
        images.check_readable()
        check_classes(images, tuple(main_output(run_once(network, source.takes)).shape))
        source = replace(source, class_names=source.class_names or images.classes)
    if max_drop is not None:
        check_labelled(images)
    check_inputs(asked, start.network, source, origin=origin, int8="int8" in form.precisions)
    check_kind(form, network, source.takes)
    check_int8_inputs(form, asked, network)
    return OpenedDense(network=network, source=source, start=start, origin=origin)
