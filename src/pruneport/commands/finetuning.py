"""Fine-tuning as a verb: from a bundle or a dense network, and a task, to a bundle."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from pruneport.commands.artifacts import write_card, write_json
from pruneport.commands.configs import FinetuneConfig
from pruneport.commands.results import FinetuneResult
from pruneport.commands.starting import BundleStart, open_start
from pruneport.compress.allocation.target import missed_target, target_of
from pruneport.compress.finetune.checks import check_training
from pruneport.compress.finetune.setup import dense_plan, trained_plan, with_output_layer
from pruneport.compress.finetune.state import TrainState, read_state, write_state
from pruneport.compress.finetune.training import Job, train
from pruneport.compress.further import check_below
from pruneport.compress.importance.criteria import resolve_auto
from pruneport.compress.options import PruneOptions
from pruneport.compress.prune import request_of
from pruneport.compress.state_file import check_same_settings, plain_settings, state_place
from pruneport.compress.surgery.rebuild import rebuild_network
from pruneport.errors import InputError, TargetError
from pruneport.export.bundle.bundle import TRAINING
from pruneport.export.bundle.weights import write_network
from pruneport.export.bundle.writing import check_output, new_bundle
from pruneport.models.factories import load_factory
from pruneport.models.images.tasks import open_task
from pruneport.models.options import given_of
from pruneport.models.preparation.class_names import named
from pruneport.models.preparation.resolve import prepared
from pruneport.models.record import Factory
from pruneport.progress import Progress, Stage, numbered, silent

__all__ = ["finetune"]


def finetune(config: FinetuneConfig, progress: Progress = silent, command: str = "") -> FinetuneResult:
    """Train on a task and write the bundle; a run that was stopped goes on where it was last saved.

    Raises:
        InputError: Something that was given cannot be used; nothing is written.
        TrainingError: The budget is below one step, the loss is not finite, or the state beside ``out`` is another
            training's.
        InUseError: Another process trains to the same ``out``, or writes there.
    """
    progress = numbered(progress, 4)
    check_output(config.out, config.overwrite)
    check_training(config)
    _check_schedule(config)
    factory = load_factory(config.factory) if config.factory else None
    with state_place(config.out, "training") as state_file:
        job = _begin_or_go_on(config, state_file, factory, progress)
        progress(Stage("training"))
        try:
            state = train(job, progress)
        except InputError:
            if not read_state(state_file).step:  # nothing to go on from
                state_file.unlink()
            raise
        plan = trained_plan(state, job.task)
        if job.pruning is not None:
            target, value = target_of(config)
            note = plan.note or missed_target(plan.macs_kept, value, config)
            plan = replace(plan, note=note, request=request_of(target, value, resolve_auto(config, calibrated=False)))
        progress(Stage(f"writing {config.out}"))
        with new_bundle(config.out, config.overwrite, command) as staging:
            network = rebuild_network(plan, state.weights, factory)
            write_network(staging, network, plan)
            write_json(staging / TRAINING, {"format_version": 1, "events": [asdict(event) for event in state.events]})
            write_card(staging, plan)
        state_file.unlink()
    return FinetuneResult(folder=config.out, plan=plan, events=tuple(state.events), network=network)


def _begin_or_go_on(config: FinetuneConfig, state_file: Path, factory: Factory | None, progress: Progress) -> Job:
    """The training, with its state on disk."""
    settings = _settings(config)
    network = None
    if state_file.exists():
        state = read_state(state_file)
        check_same_settings(state.config, settings, state_file, "a training")
        progress(Stage(f"going on at step {state.step} of {state_file}"))
        plan = state.plan
    else:
        progress(Stage(f"opening {config.source}"))
        start = open_start(replace(config, class_names=None), progress)  # they are of the new output layer
        network = start.network
        plan = start.plan if isinstance(start, BundleStart) else dense_plan(network, start.source)
        plan = replace(plan, source=prepared(plan.source, config))
    progress(Stage(f"reading the images of {config.task}"))
    task = open_task(config.task, config, plan.source.image_shape, plan.source.preprocessing)
    if network is not None:
        if plan.source.trained:  # else the seed stands for the weights themselves
            plan = replace(plan, source=replace(plan.source, seed=config.seed))
        network, plan = with_output_layer(network, plan, task, config.keep_head)
        if config.class_names is not None:
            plan = replace(plan, source=named(plan.source, network, config.class_names))
        if config.schedule != "none":
            check_below(config, plan, f"{config.source} with the new output layer")
        write_state(state_file, TrainState(plan=plan, weights=dict(network.state_dict()), config=settings))
    return Job(
        state=state_file,
        task=task,
        options=config,
        pruning=config if config.schedule != "none" else None,
        seed=config.seed,
        factory=config.factory,
    )


def _check_schedule(config: FinetuneConfig) -> None:
    """Raise where pruning is asked for without a schedule, or a schedule has another target than compute."""
    if config.schedule == "none":
        names = (*(field.name for field in fields(PruneOptions)), "cuts")
        if given := given_of(config, names):
            raise TargetError(
                f"{', '.join(given)} without `schedule`: add `schedule=loss` to prune while training, or prune first "
                "with pruneport compress and train that bundle."
            )
    elif target_of(config)[0] != "flops":
        raise TargetError("`schedule` counts compute: give `flops` in place of `params` or `ratio`.")


def _settings(config: FinetuneConfig) -> dict[str, Any]:
    """What makes two trainings the same one."""
    free = {"out", "overwrite", "save_every", "workers"}
    return plain_settings({name: value for name, value in asdict(config).items() if name not in free})
