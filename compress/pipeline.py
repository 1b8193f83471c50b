"""Pruning and recovery in one: everything between a dense network and the one that is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

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
from pruneport.compress.devices import check_memory_bound, find_device, in_full_precision, with_smaller_batches
from pruneport.compress.further import Origin
from pruneport.compress.importance.criteria import BY_LABELS, reads_labels, wants_inputs
from pruneport.compress.importance.gradients import check_labels
from pruneport.compress.options import CompressOptions
from pruneport.compress.prune import Pruned, Pruner, prune
from pruneport.compress.records import Recovered
from pruneport.compress.recovery.imitate import Effort
from pruneport.compress.recovery.imitation_state import Unfinished, UnfinishedFile
from pruneport.compress.recovery.recover import choose_recovery, recover
from pruneport.compress.structure import Structure, check_keep, refuse_compiled, refuse_random
from pruneport.compress.surgery.rebuild import pruned_copy
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
    saved: UnfinishedFile | None = None,
) -> Pruned:
    """Prune a network and recover accuracy, as the options say; the dense network is left as it is.

    Args:
        options: What is asked.
        dense: As in ``compress_to``, as are the others.
        source: Where it came from.
        progress: Told what is being done.
        origin: Where ``dense`` came from, if it was compressed before.
        pruner: Chooses widths and removes filters.
        structure: As in ``assess``.
        saved: Where a recovery that imitates is saved meanwhile, and goes on from if it was stopped.

    Raises:
        InputError: The target, the images or the network cannot be used; or what was saved.
    """
    return prepare(options, dense, source, progress, None, origin, structure).prune_to(options, progress, pruner, saved)


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


@dataclass(kw_only=True)
class Ready:
    """A network that can be pruned to one target after the other, with what recovery needs at hand; assessed once.

    Attributes:
        dense: In eval mode; it is only read and run.
        source: Where it came from.
        options: How it is assessed.
        calibration: Inputs, where there are any.
        recovery: How accuracy is won back.
        progress: Told how it is assessed.
        origin: Where ``dense`` came from, if it was compressed before.
        structure: As in ``assess``.
        assessment: Its groups, scores and sensitivities, once a target needs them.
    """

    dense: nn.Module
    source: Source
    options: CompressOptions
    calibration: Calibration | None
    recovery: str
    progress: Progress = silent
    origin: Origin | None = None
    structure: Structure | None = None
    assessment: Assessment | None = None

    def prune_to(
        self,
        target: CompressOptions,
        progress: Progress = silent,
        pruner: Pruner = prune,
        saved: UnfinishedFile | None = None,
    ) -> Pruned:
        """Prune to a target and recover accuracy; its options differ in nothing else from those prepared for.

        Args:
            target: The options.
            progress: Told what is being done.
            pruner: Chooses widths and removes filters.
            saved: As in ``compress_network``.

        Raises:
            TargetError: It is out of reach.
            PruningError: Nothing can be pruned.
            CheckpointError: What was saved is damaged.
            TrainingError: It is of other options.
        """
        unfinished = saved.read() if saved is not None else None
        if unfinished is not None:
            pruned = self._pruned_before(unfinished, progress)
        else:
            assessment = self._assessed()
            progress(Stage("choosing widths and removing filters"))
            pruned = pruner(self.dense, self.source, target, progress, assessment)
            unfinished = None if saved is None else saved.begin(pruned.plan, pruned.network)
        plan, network, inputs, origin = pruned.plan, pruned.network, self.calibration, self.origin
        progress(Stage("recovering accuracy"))
        if inputs is not None:
            reference, device = _reference(self.dense, origin), find_device(self.options.accelerator)
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
                    device,
                    synthetic=given.record.inputs == "synthetic",
                    unfinished=unfinished,
                )

            bounded = memory_bounded(target.memory, device)
            with in_full_precision(), solvable(), freed_memory_kept(), bounded:
                done, _ = with_smaller_batches(won_back, inputs, progress)
            if origin and origin.reference is None:
                done = replace(done, reference="start")
            plan = replace(plan, calibration=inputs.record, recovery=done)
        if origin:
            plan = replace(origin.composed(plan), source=self.source)
        return replace(pruned, plan=plan, calibration=inputs)

    def _pruned_before(self, unfinished: Unfinished, progress: Progress) -> Pruned:
        """The pruned network of a compression that was stopped, before recovery: nothing is measured again for it."""
        if self.assessment is None:
            progress(Stage(f"reading {unfinished.file.path}"))
        progress(Stage("pruning as before, to go on with the imitation"))
        network = pruned_copy(self.dense, unfinished.plan, unfinished.pruned)
        return Pruned(network=network, plan=replace(unfinished.plan, source=self.source))

    def _assessed(self) -> Assessment:
        """Scores and sensitivities; measured with batches that fit, which the calibration has from then on."""
        if self.assessment is not None:
            return self.assessment
        self.progress(Stage("scoring filters and groups"))
        options, original = self.options, None if self.origin is None else self.origin.cost
        labels, device = options.calibration_labels, find_device(options.accelerator)

        def assessed(given: Calibration | None) -> Assessment:
            return assess(
                self.dense, self.source, options, given, labels, self.progress, original, device, self.structure
            )

        if self.calibration is None:
            found = assessed(None)
        else:
            with in_full_precision(), freed_memory_kept(), memory_bounded(options.memory, device):
                found, self.calibration = with_smaller_batches(assessed, self.calibration, self.progress)
        self.assessment = found
        return found


def prepare(
    options: CompressOptions,
    dense: nn.Module,
    source: Source,
    progress: Progress = silent,
    calibration: Calibration | None = None,
    origin: Origin | None = None,
    structure: Structure | None = None,
) -> Ready:
    """Do once what every target needs: gather inputs; the network is assessed for the first. No target is needed yet.

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
    return Ready(
        dense=dense,
        source=source,
        options=options,
        calibration=calibration,
        recovery=name,
        progress=progress,
        origin=origin,
        structure=structure,
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
