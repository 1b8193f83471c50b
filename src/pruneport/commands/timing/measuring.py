"""Networks of random widths, timed here; the verb that writes the timings as a table."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pruneport.arrays import FloatArray
from pruneport.bench.latency.measure import preflight
from pruneport.bench.latency.timer import DenseTimer
from pruneport.bench.options import SWITCHES, BenchOptions, PlaceOptions
from pruneport.bench.timings.calibrate import draw_allocations, time_allocations
from pruneport.bench.timings.staircase import Staircase, measure_staircase
from pruneport.bench.timings.table import LatencyTable, TimedWidths, network_sha256, place_of
from pruneport.commands.configs import LatencyConfig
from pruneport.commands.results import LatencyResult
from pruneport.compress.allocation.target import check_widths, nothing_prunable
from pruneport.compress.assessment import Assessment, assess
from pruneport.compress.graph.widths import possible_widths
from pruneport.compress.options import PruneOptions
from pruneport.compress.prune import network_with
from pruneport.compress.structure import Structure, reasons_with
from pruneport.errors import InputError, OutputError, PruningError, SourceError
from pruneport.export.bundle.bundle import is_bundle
from pruneport.export.onnx.onnx_file import write_onnx
from pruneport.export.options import DEFAULTS, ExportOptions
from pruneport.export.precisions.providers import why_not_on
from pruneport.files import check_file
from pruneport.models.outputs import takes_several
from pruneport.models.record import Source
from pruneport.models.source import open_source
from pruneport.progress import Progress, Stage, numbered, silent

__all__ = [
    "DenseFile",
    "check_place",
    "export_form",
    "fingerprint",
    "latency",
    "measure_table",
    "varied",
    "width_step_on",
]


@dataclass(frozen=True, kw_only=True)
class DenseFile:
    """A dense network in torch and as an ONNX file, with what it was exported for."""

    network: nn.Module
    source: Source
    path: Path
    form: ExportOptions


def latency(config: LatencyConfig, progress: Progress = silent) -> LatencyResult:
    """Time networks of random widths here, and write the table for a latency target that is set elsewhere.

    Weights play no part, so no checkpoint is needed.

    Raises:
        InputError: The source, an option or the provider cannot be used; nothing is written.
    """
    progress = numbered(progress, 3)
    check_file(config.out, "out", (".json",), new_folder=True)
    if config.out.exists() and not config.overwrite:
        raise OutputError(f"{config.out} is there; choose another `out`, or give `overwrite`.")
    if is_bundle(Path(config.source)):
        raise SourceError(
            f"{config.source} is a bundle, and a table is of a dense network: give the source that it was made from. "
            "For a latency target of the bundle itself no table is needed: compress times it."
        )
    options = PruneOptions(
        criterion="l1",
        ranking="uniform",
        scope=config.scope,
        prune_representation=config.prune_representation,
        attention=config.attention,
        depth=config.depth,
        round_to=config.round_to,
        max_pruning_ratio=config.max_pruning_ratio,
        keep=config.keep,
    )
    check_widths(options)
    progress(Stage(f"building {config.source}"))
    network, source = open_source(config)
    form = export_form(network, source, DEFAULTS)
    check_place(config, form)
    network = _told_apart(network)
    progress(Stage("finding groups"))
    assessed = assess(network, source, options, progress=progress)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "dense.onnx"
        progress("exporting the dense network")
        write_onnx(network, source.takes, path, {}, form, source.preprocessing)
        progress(Stage("timing networks", still=True))
        dense = DenseFile(network=network, source=source, path=path, form=form)
        table = measure_table(dense, assessed, config, progress)
    table.write(config.out)
    return LatencyResult(file=config.out, table=table)


def measure_table(dense: DenseFile, assessed: Assessment, options: PlaceOptions, progress: Progress) -> LatencyTable:
    """Probe the device's width steps, and time networks of random widths in turns with the dense one.

    Raises:
        ProviderError: The provider does not run them.
        PruningError: No group can be pruned.
    """
    place = place_of(options)
    progress("probing the device's width step")
    staircase = measure_staircase(options, place.batch, place.precision)
    allowed = replace(assessed.options, round_to=width_step_on(staircase, assessed.options))
    groups = assessed.groups
    reasons = reasons_with(dense.network, assessed, allowed)
    widths = {index: possible_widths(groups[index], allowed) for index, reason in enumerate(reasons) if not reason}
    full = np.array([group.width for group in groups], dtype=np.float64)
    branches = [branch.groups for branch in assessed.branches if _goes(dense, assessed, full, branch.groups)]
    if not widths and not branches:
        raise PruningError(nothing_prunable(groups, reasons))

    def export(path: Path, kept: FloatArray) -> None:
        pruned = network_with(dense.network, dense.source, assessed, kept)
        write_onnx(pruned, dense.source.takes, path, {}, dense.form, dense.source.preprocessing)

    timer = DenseTimer(dense.path, options, place.batch, place.precision)
    allocations = draw_allocations(full, widths, branches=branches)
    timed = time_allocations(timer, dense.network, dense.path, groups, allocations, export, progress)
    return LatencyTable(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        source=dense.source.spec,
        place=place,
        network=fingerprint(assessed, dense.source),
        varied=varied(assessed),
        staircase=staircase,
        clock=timer.clock,
        dense_ms=float(np.median([entry.dense_ms for entry in timed])),
        timings=tuple(
            TimedWidths(
                kept=tuple(int(width) for width in kept),
                share=entry.share,
                low=entry.low,
                high=entry.high,
                wall_share=entry.wall_share,
            )
            for kept, entry in zip(allocations, timed, strict=True)
        ),
    )


def _goes(dense: DenseFile, assessed: Assessment, full: FloatArray, groups: Sequence[int]) -> bool:
    """Whether the proof lets a branch go, alone."""
    kept = full.copy()
    kept[list(groups)] = 0
    try:
        network_with(dense.network, dense.source, assessed, kept)
    except PruningError:
        return False
    return True


def fingerprint(assessed: Structure, source: Source) -> str:
    """What tells the architecture from others."""
    return network_sha256(assessed.groups, assessed.cost.layer_shares(), source.takes)


def varied(assessed: Structure) -> tuple[str, ...]:
    """Names of the groups that may be pruned, and of the branches that may be dropped."""
    groups = (group.name for group, reason in zip(assessed.groups, assessed.reasons, strict=True) if not reason)
    return (*groups, *(f"depth of {branch.name}" for branch in assessed.branches))


def width_step_on(staircase: Staircase, options: PruneOptions) -> int:
    """What kept widths are multiples of: the device's step, where the user gave no number."""
    steps = [step for step in (staircase.convolution, staircase.depthwise) if step is not None]
    return max(steps) if steps and options.round_to == PruneOptions.round_to else options.round_to


def export_form(network: nn.Module, source: Source, form: ExportOptions) -> ExportOptions:
    """The form in which networks are timed: for one image at a time where they take no more."""
    if form.batch_size_fixed is None and not takes_several(network, source.takes):
        return replace(form, batch_size_fixed=1)
    return form


def check_place(options: PlaceOptions, form: ExportOptions) -> None:
    """Find out before any long work whether networks can be timed so here.

    Raises:
        InputError: An option is out of range, or the batch size is not the one that is exported for.
        ProviderError: The provider is not there or does not start.
    """
    if form.batch_size_fixed not in (None, options.latency_batch):
        raise InputError(
            f"`latency_batch` is {options.latency_batch}, and the networks are exported for a batch of "
            f"{form.batch_size_fixed} alone; give `latency_batch={form.batch_size_fixed}`."
        )
    if options.latency_batch < 1:
        raise InputError(f"`latency_batch` is {options.latency_batch}; expected at least 1.")
    if options.latency_precision == "int8" and options.provider == "cuda":
        why_not = why_not_on(options.provider, "int8", None)
        raise InputError(f"`latency_precision` is int8, and `provider` is cuda: {why_not}. Give fp32, or tensorrt.")
    if options.latency_precision == "fp16" and options.provider == "cpu":
        raise InputError(
            "`latency_precision` is fp16, and `provider` is cpu, which computes most of it in float32 and converts "
            "before and after. Give fp32 or int8, or a GPU's provider."
        )
    timed = BenchOptions(
        provider=options.provider,
        repeats=options.repeats,
        warmup=options.warmup,
        threads=options.threads,
        device=options.device,
        **{name: getattr(options, name) for name in SWITCHES},
        batches=(options.latency_batch,),
    )
    preflight(timed, form.batch_size_fixed)


def _told_apart(network: nn.Module) -> nn.Module:
    """A copy in which no two weights are equal: torch's exporter would store these once, and they may be cut apart."""
    network = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand(tensor.shape, generator=generator).to(tensor.dtype) / 100)
    return network
