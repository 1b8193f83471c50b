"""inspect and compress: from a source to a bundle with a plan."""

from __future__ import annotations

import json
from dataclasses import replace

from torch import nn

from pruneport.bench.report.graph import check_graph, write_graph
from pruneport.bench.report.graph_content import content_of_views
from pruneport.bench.report.plots import check_plot, sensitivity_plot
from pruneport.commands.artifacts import Exported, export_dense, write_card
from pruneport.commands.configs import (
    CompressConfig,
    InspectConfig,
)
from pruneport.commands.results import CompressResult, InspectResult
from pruneport.compress.allocation.cost import run_once
from pruneport.compress.allocation.target import check_round_to, target_of
from pruneport.compress.assessment import describe_groups
from pruneport.compress.options import PruneOptions
from pruneport.compress.pipeline import STAGES as COMPRESSION
from pruneport.compress.pipeline import calibration_inputs, check_inputs, compress_network
from pruneport.compress.prune import Pruned
from pruneport.errors import OutputError
from pruneport.export.accuracy import check_classes
from pruneport.export.bundle.weights import write_network
from pruneport.export.bundle.writing import check_output, new_bundle
from pruneport.export.card.verdict import warnings_for
from pruneport.export.onnx.embedding import embedding_for
from pruneport.export.onnx.form import check_form
from pruneport.export.options import DEFAULTS, ExportOptions, ParityOptions
from pruneport.export.precisions.writing import check_int8_inputs
from pruneport.export.verify import open_parity_images
from pruneport.files import write_whole
from pruneport.models.outputs import main_output
from pruneport.models.preparation.resolve import prepared
from pruneport.models.source import open_source
from pruneport.progress import Progress, Stage, numbered, silent

__all__ = ["compress", "inspect", "prune_source"]


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


def prune_source(config: CompressConfig, progress: Progress) -> tuple[nn.Module, Exported | None, Pruned]:
    """Open the source, prune it and recover accuracy; what can be checked before any work is.

    Returns:
        The dense network, untouched; the same as ONNX, where the configuration is one that exports, and not only at
        the end; and the pruned one with its plan.
    """
    check_output(config.out, config.overwrite)
    target_of(config)
    form = config if isinstance(config, ExportOptions) else DEFAULTS
    check_form(form)
    progress(Stage(f"building {config.source}"))
    dense, source = open_source(config)
    source = prepared(source, config)
    embedding_for(form.embed_preprocessing, source.preprocessing, source.input_shape)  # named before any work
    if isinstance(config, ParityOptions):
        images = open_parity_images(config, source.input_shape, form.batch_size_fixed, source.preprocessing)
        if images is not None:
            images.check_readable()
            check_classes(images, tuple(main_output(run_once(dense, source.input_shape)).shape))
            source = replace(source, class_names=source.class_names or images.classes)
    check_inputs(config, dense, source)
    check_int8_inputs(form, config, dense)
    exported = None
    if config.dry_export:
        progress(Stage("exporting the dense network"))
        exported = export_dense(dense, source, form, progress)
    if not isinstance(config, ExportOptions):
        exported = None  # only to see that it can be done
    return dense, exported, compress_network(dense, source, config, progress)
