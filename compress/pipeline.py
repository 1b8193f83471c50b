"""Pruning and recovery in one: everything between a dense network and the one that is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import nn

from pruneport.compress.activations.calibration import BATCH, Calibration, held_out_count, list_images, open_calibration
from pruneport.compress.activations.synthetic import ENOUGH, synthesise
from pruneport.compress.allocation.cost import run_once
from pruneport.compress.assessment import assess
from pruneport.compress.importance.criteria import wants_inputs
from pruneport.compress.options import CalibrationImages, CompressOptions
from pruneport.compress.prune import Pruned, prune
from pruneport.compress.recovery.recover import choose_recovery, recover
from pruneport.errors import ModelError, PruningError
from pruneport.models.outputs import Outputs, read_outputs, takes_several
from pruneport.models.preparation.resolve import prepared
from pruneport.models.record import Source
from pruneport.progress import Note, Progress, Stage, silent

__all__ = ["STAGES", "calibration_inputs", "check_inputs", "compress_network", "compress_to"]

STAGES = 4
"""How many a compression has; one that has nothing to do takes no time."""


def check_inputs(options: CompressOptions, dense: nn.Module, source: Source, *, calibrated: bool = False) -> None:
    """Check, without any work, that the options can be met by the images that are given, or by none.

    ``calibrated``: there are inputs besides a folder that the options name.

    Raises:
        ImageFolderError: Images are needed and none are given, or the folder cannot be used.
        PruningError: Synthetic inputs are needed, and there are no BatchNorm statistics to make them from.
    """
    source = prepared(source, options)
    list_images(options, source.input_shape, source.preprocessing)
    choose_recovery(options, dense, source.trained, calibrated=calibrated)
    wants_inputs(options, calibrated or options.calibration is not None)


def compress_network(dense: nn.Module, source: Source, options: CompressOptions, progress: Progress = silent) -> Pruned:
    """Prune a network and recover accuracy, as the options say; the dense network is left as it is.

    Raises:
        InputError: The target, the images or the network cannot be used.
    """
    return next(compress_to([options], dense, source, progress))


def compress_to(
    targets: Sequence[CompressOptions],
    dense: nn.Module,
    source: Source,
    progress: Progress = silent,
    calibration: Calibration | None = None,
) -> Iterator[Pruned]:
    """The same to several targets: options that differ in nothing else. The network is assessed once.

    Args:
        targets: The options.
        dense: The dense network in eval mode; it is only read and run.
        source: Where it came from.
        progress: Told what is being done.
        calibration: Inputs that are at hand, in the place of those that the options name.
    """
    options = targets[0]
    source = prepared(source, options)
    outputs = read_outputs(run_once(dense, source.input_shape))
    several = takes_several(dense, source.input_shape)
    given = calibration is not None
    name = choose_recovery(options, dense, source.trained, several and _measurable(outputs), calibrated=given)
    progress(Stage("gathering calibration inputs"))
    if not several:
        progress(Note("the network takes one image at a time: to export it, give `batch_size_fixed=1`"))
    if given:
        _check_measurable(outputs)
    elif options.calibration is not None or wants_inputs(options, calibrated=False) or name == "data-free":
        _check_measurable(outputs)
        calibration = calibration_inputs(options, dense, source, progress, hold_out=True)
    progress(Stage("scoring filters and groups"))
    assessment = assess(dense, source, options, calibration, options.calibration_labels, progress)
    for target in targets:
        progress(Stage("choosing widths and removing filters"))
        pruned = prune(dense, source, target, progress, assessment)
        plan = pruned.plan
        progress(Stage("recovering accuracy"))
        if calibration is not None:
            batches, heldout = calibration.batches, calibration.heldout
            done = recover(name, dense, pruned.network, plan.groups, batches, progress, heldout)
            plan = replace(plan, calibration=calibration.record, recovery=done)
        yield replace(pruned, plan=plan, calibration=calibration)


def calibration_inputs(
    options: CalibrationImages,
    network: nn.Module,
    source: Source,
    progress: Progress,
    *,
    hold_out: bool = False,
) -> Calibration:
    """The calibration images, or synthetic inputs where there are none.

    Args:
        options: The images, or how many synthetic inputs at most.
        network: The dense network.
        source: Where it came from; gives the input shape and the seed.
        progress: Told what is being done.
        hold_out: Whether some inputs are held out, to measure on.

    Raises:
        ImageFolderError: The images cannot be used.
        PruningError: There are none, and no synthetic inputs can be made.
    """
    several = takes_several(network, source.input_shape)
    batch = BATCH if several else 1
    given = open_calibration(
        options, source.input_shape, source.preprocessing, hold_out=hold_out, seed=source.seed, batch=batch
    )
    if given is not None:
        return given
    if not several:
        raise PruningError(
            "the network takes one image at a time, and synthetic inputs are made from the statistics of many: give "
            "images with `calibration=FOLDER`, or choose `criterion=l1` `ranking=uniform` `recover=none`."
        )
    count = min(options.calibration_images, ENOUGH)
    held_out = held_out_count(count) if hold_out else 0
    return synthesise(network, source.input_shape, count, source.seed, progress, held_out=held_out)


def _measurable(outputs: Outputs) -> bool:
    """Whether an error of the outputs means anything."""
    main = outputs.tensors[outputs.main]
    return main.is_floating_point() and main.ndim > 0


def _check_measurable(outputs: Outputs) -> None:
    """Raise where no error can be measured on the outputs."""
    if not _measurable(outputs):
        raise ModelError(
            f"the network's outputs ({', '.join(outputs.tensors)}) hold no floating point numbers for each image, so "
            "no error can be measured on them. Let its forward return the scores that it decides by, or leave out "
            "`calibration` and choose `criterion=l1` `ranking=uniform` `recover=none`."
        )
