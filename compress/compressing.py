"""Pruning and recovery in one: everything between a dense network and the one that is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import nn

from pruneport.compress.calibration import Calibration, open_calibration
from pruneport.compress.criteria import wants_inputs
from pruneport.compress.options import CalibrationOptions, CompressOptions
from pruneport.compress.prune import Pruned, assess, prune
from pruneport.compress.recovery import choose_recovery, recover
from pruneport.compress.synthesis import ENOUGH, synthesise
from pruneport.models.record import Source
from pruneport.progress import Progress, Stage, silent

__all__ = ["STAGES", "calibration_inputs", "compress_network", "compress_to"]

STAGES = 4
"""How many a compression has; one that has nothing to do takes no time."""


def compress_network(dense: nn.Module, source: Source, options: CompressOptions, progress: Progress = silent) -> Pruned:
    """Prune a network and recover accuracy, as the options say; the dense network is left as it is.

    Raises:
        InputError: The target, the images or the network cannot be used.
    """
    return next(compress_to([options], dense, source, progress))


def compress_to(
    targets: Sequence[CompressOptions], dense: nn.Module, source: Source, progress: Progress = silent
) -> Iterator[Pruned]:
    """The same to several targets: options that differ in nothing else. The network is assessed once."""
    options = targets[0]
    name = choose_recovery(options, dense, source.trained)
    progress(Stage("gathering calibration inputs"))
    calibration = None
    if options.calibration is not None or wants_inputs(options, calibrated=False) or name == "data-free":
        calibration = calibration_inputs(options, dense, source, progress)
    progress(Stage("measuring what removal costs"))
    assessment = assess(dense, source, options, calibration, options.calibration_labels, progress)
    for target in targets:
        progress(Stage("choosing widths and removing filters"))
        pruned = prune(dense, source, target, progress, assessment)
        plan = pruned.plan
        progress(Stage("recovering accuracy"))
        if calibration is not None:
            plan = replace(plan, calibration=calibration.record)
            if name != "none":
                done = recover(name, dense, pruned.network, plan.groups, calibration.batches, progress)
                plan = replace(plan, recovery=done)
        yield replace(pruned, plan=plan)


def calibration_inputs(
    options: CalibrationOptions, network: nn.Module, source: Source, progress: Progress
) -> Calibration:
    """The calibration images, or synthetic inputs where there are none."""
    given = open_calibration(options, source.input_shape)
    count = min(options.calibration_images, ENOUGH)
    return given or synthesise(network, source.input_shape, count, source.seed, progress)
