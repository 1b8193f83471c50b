"""Pruning and recovery in one: everything between a dense network and the one that is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from pruneport.compress.activations.calibration import FOR_IMAGES, LEAST_HELD_OUT, Calibration, check_count, list_images
from pruneport.compress.activations.memory import freed_memory_kept, memory_bounded
from pruneport.compress.allocation.cost import run_once
from pruneport.compress.assessment import Assessment, assess
from pruneport.compress.calibration_inputs import (
    calibration_inputs,
    check_measurable,
    check_synthetic,
    is_measurable,
    solvable,
)
from pruneport.compress.devices import CPU, check_memory_bound, find_device, in_full_precision, with_smaller_batches
from pruneport.compress.further import Origin
from pruneport.compress.importance.criteria import BY_LABELS, reads_labels, wants_inputs
from pruneport.compress.importance.gradients import check_labels
from pruneport.compress.options import CompressOptions
from pruneport.compress.prune import Pruned, Pruner, prune
from pruneport.compress.records import Recovered
from pruneport.compress.recovery.imitate import Effort
from pruneport.compress.recovery.recover import choose_recovery, recover
from pruneport.compress.structure import Structure, check_keep, refuse_compiled, refuse_random
from pruneport.errors import ImageFolderError
from pruneport.models.options import refuse_idle
from pruneport.models.outputs import read_outputs, takes_several
from pruneport.models.preparation.resolve import prepared
from pruneport.models.record import Source
from pruneport.progress import Note, Progress, Stage, silent

__all__ = ["STAGES", "Ready", "check_inputs", "compress_network", "compress_to", "prepare"]

STAGES = 4
"""How many a compression has; one that has nothing to do takes no time."""


def check_inputs(
    options: CompressOptions,
    dense: nn.Module,
    source: Source,
    *,
    calibrated: bool = False,
    origin: Origin | None = None,
    int8: bool = False,
) -> None:
    """Check, without any work, that the options can be met by the images that are given, or by none.

    ``calibrated``: there are inputs besides a folder that the options name. ``origin``: as in ``compress_to``.
    ``int8``: inputs calibrate int8, whatever pruning and recovery do without.

    Raises:
        InputError: An option is given that nothing would read, or a pattern to keep matches nothing.
        ImageFolderError: Images are needed and none are given, the folder cannot be used, or its labels do not fit.
        ModelError: Parts of the network are compiled, its forward is random, or its outputs have no error to measure.
        PruningError: Synthetic inputs are needed, and there are no BatchNorm statistics to make them from.
    """
    refuse_compiled(dense)
    check_keep(dense, options.keep)
    source = prepared(source, options)
    images = None
    if options.calibration is not None:
        images = list_images(options, source.image_shape, source.preprocessing)
    check_count(options.calibration_images)
    find_device(options.accelerator)
    check_memory_bound(options.memory)
    recovery = choose_recovery(options, dense, _trained(source, origin), calibrated=calibrated)
    given = calibrated or options.calibration is not None
    wanted = wants_inputs(options, given)
    if wanted and not given:
        check_synthetic(options, _reference(dense, origin), source)
    _refuse_idle(options, given, runs=given or wanted or options.recover != "none" or int8)
    refuse_random(dense, source)
    if images is not None:
        _check_imitable(recovery, min(options.calibration_images, len(images)))
        outputs = read_outputs(run_once(dense, source.takes))
        check_measurable(outputs)
        if reads_labels(options, given):
            classes = None if images.labels is None else len(images.classes)
            check_labels(outputs.tensors[outputs.main], classes, options.calibration_labels)


def _refuse_idle(options: CompressOptions, given: bool, runs: bool) -> None:
    """Refuse what changes nothing, as none are ``given``, or the network ``runs`` on none, not even synthetic ones."""
    if not given:
        refuse_idle(options, ["skip_unreadable"], *FOR_IMAGES)
    if not reads_labels(options, given):
        why = f"for criteria that read labels, {', '.join(BY_LABELS)}, and `criterion` names none of them"
        refuse_idle(options, ["calibration_labels"], why, "Choose one of these")
    if not runs:
        why = "for calibration inputs, of which `recover=none` and the criterion and ranking asked for use none"
        refuse_idle(options, ["calibration_images", "accelerator"], why, "Give `calibration=FOLDER`")


def compress_network(
    dense: nn.Module,
    source: Source,
    options: CompressOptions,
    progress: Progress = silent,
    origin: Origin | None = None,
    pruner: Pruner = prune,
    structure: Structure | None = None,
) -> Pruned:
    """Prune a network and recover accuracy, as the options say; the dense network is left as it is.

    Raises:
        InputError: The target, the images or the network cannot be used.
    """
    return next(compress_to([options], dense, source, progress, origin=origin, pruner=pruner, structure=structure))


def compress_to(
    targets: Sequence[CompressOptions],
    dense: nn.Module,
    source: Source,
    progress: Progress = silent,
    calibration: Calibration | None = None,
    origin: Origin | None = None,
    pruner: Pruner = prune,
    structure: Structure | None = None,
) -> Iterator[Pruned]:
    """The same to several targets: options that differ in nothing else. The network is assessed once.

    Args:
        targets: The options.
        dense: The dense network in eval mode; it is only read and run.
        source: Where it came from.
        progress: Told what is being done.
        calibration: Inputs that are at hand, in the place of those that the options name.
        origin: Where ``dense`` came from, if it was compressed before; the plans are then of both compressions.
        pruner: Chooses widths and removes filters; a latency target needs one that times networks.
        structure: As in ``assess``.
    """
    ready = prepare(targets[0], dense, source, progress, calibration, origin, structure)
    for target in targets:
        yield ready.prune_to(target, progress, pruner)


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A network that can be pruned to one target after the other: assessed, with what recovery needs at hand.

    Attributes:
        dense: In eval mode; it is only read and run.
        source: Where it came from.
        assessment: Its groups, scores and sensitivities.
        calibration: Inputs, where there are any.
        recovery: How accuracy is won back.
        origin: Where ``dense`` came from, if it was compressed before.
        device: Where it is recovered.
    """

    dense: nn.Module
    source: Source
    assessment: Assessment
    calibration: Calibration | None
    recovery: str
    origin: Origin | None = None
    device: torch.device = CPU

    def prune_to(self, target: CompressOptions, progress: Progress = silent, pruner: Pruner = prune) -> Pruned:
        """Prune to a target and recover accuracy; its options differ in nothing else from those prepared for.

        Raises:
            TargetError: It is out of reach.
            PruningError: Nothing can be pruned.
        """
        progress(Stage("choosing widths and removing filters"))
        pruned = pruner(self.dense, self.source, target, progress, self.assessment)
        plan, network, inputs, origin = pruned.plan, pruned.network, self.calibration, self.origin
        progress(Stage("recovering accuracy"))
        if inputs is not None:
            reference = _reference(self.dense, origin)
            gone = origin.groups(plan) if origin else plan.groups
            effort = Effort(minutes=target.recovery_minutes, steps=target.recovery_steps, seed=self.source.seed)

            def won_back(given: Calibration) -> Recovered:
                return recover(
                    self.recovery,
                    reference,
                    network,
                    gone,
                    given.batches,
                    progress,
                    given.heldout,
                    effort,
                    self.device,
                    synthetic=given.record.inputs == "synthetic",
                )

            bounded = memory_bounded(target.memory, self.device)
            with in_full_precision(), solvable(), freed_memory_kept(), bounded:
                done, _ = with_smaller_batches(won_back, inputs, progress)
            if origin and origin.reference is None:
                done = replace(done, reference="start")
            plan = replace(plan, calibration=inputs.record, recovery=done)
        if origin:
            plan = replace(origin.composed(plan), source=self.source)
        return replace(pruned, plan=plan, calibration=inputs)


def prepare(
    options: CompressOptions,
    dense: nn.Module,
    source: Source,
    progress: Progress = silent,
    calibration: Calibration | None = None,
    origin: Origin | None = None,
    structure: Structure | None = None,
) -> Ready:
    """Do once what every target needs: gather inputs, and assess the network; the options need no target yet.

    Raises:
        InputError: The images or the network cannot be used.
    """
    source = prepared(source, options)
    outputs = read_outputs(run_once(dense, source.takes))
    several = takes_several(dense, source.takes)
    given = calibration is not None
    reference = _reference(dense, origin)
    trained = _trained(source, origin)
    data_free = source.inputs is None and several and is_measurable(outputs)
    name = choose_recovery(options, dense, trained, data_free, calibrated=given)
    progress(Stage("gathering calibration inputs"))
    if not several:
        progress(Note(f"the network takes one {source.takes.thing} at a time: to export it, give `batch_size_fixed=1`"))
    if given:
        check_measurable(outputs)
    elif options.calibration is not None or wants_inputs(options, calibrated=False) or name in ("data-free", "imitate"):
        check_measurable(outputs)
        calibration = calibration_inputs(options, reference, source, progress, hold_out=True)
    if calibration is not None:
        _check_imitable(name, calibration.record.count)
    progress(Stage("scoring filters and groups"))
    original = None if origin is None else origin.cost
    labels, device = options.calibration_labels, find_device(options.accelerator)

    def assessed(given: Calibration | None) -> Assessment:
        return assess(dense, source, options, given, labels, progress, original, device, structure)

    if calibration is None:
        assessment = assessed(None)
    else:
        with in_full_precision(), freed_memory_kept(), memory_bounded(options.memory, device):
            assessment, calibration = with_smaller_batches(assessed, calibration, progress)
    return Ready(
        dense=dense,
        source=source,
        assessment=assessment,
        calibration=calibration,
        recovery=name,
        origin=origin,
        device=device,
    )


def _check_imitable(recovery: str, inputs: int) -> None:
    """Refuse imitation on so few inputs that none can be set aside."""
    if recovery == "imitate" and inputs < 2 * LEAST_HELD_OUT:
        raise ImageFolderError(
            f"`recover=imitate` needs {2 * LEAST_HELD_OUT} calibration inputs at least, and has {inputs}: some are set "
            "aside to choose the learning rate with. Give more, or choose `recover=reconstruct`."
        )


def _reference(dense: nn.Module, origin: Origin | None) -> nn.Module:
    """Whose outputs the pruned network shall compute."""
    return dense if origin is None or origin.reference is None else origin.reference


def _trained(source: Source, origin: Origin | None) -> bool:
    """Whether the weights of the network that is pruned were trained, by whomever."""
    return source.trained or (origin is not None and origin.plan.trained)
