"""Fine-tuning as a verb: from a bundle or a dense network, and a task, to a bundle."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from pruneport.commands.artifacts import write_card, write_json
from pruneport.commands.configs import FinetuneConfig
from pruneport.commands.results import FinetuneResult
from pruneport.compress.allocation.target import target_of
from pruneport.compress.finetune.checks import check_training
from pruneport.compress.finetune.setup import dense_plan, trained_plan, with_output_layer
from pruneport.compress.finetune.state import TrainState, read_state, write_state
from pruneport.compress.finetune.training import Job, train
from pruneport.compress.importance.criteria import resolve_auto
from pruneport.compress.prune import request_of
from pruneport.compress.surgery.plan import Plan, preprocessing_of
from pruneport.compress.surgery.rebuild import rebuild_network
from pruneport.errors import InputError, SourceError, TargetError, TrainingError
from pruneport.export.bundle.bundle import TRAINING, is_bundle
from pruneport.export.bundle.weights import rebuild, write_network
from pruneport.export.bundle.writing import check_output, new_bundle
from pruneport.export.hub import is_on_hub, open_any_bundle
from pruneport.files import beside, held, made_folder
from pruneport.models.factories import load_factory
from pruneport.models.images.tasks import open_task
from pruneport.models.names import not_a_source
from pruneport.models.options import SourceOptions
from pruneport.models.preparation.class_names import named
from pruneport.models.preparation.resolve import prepared
from pruneport.models.record import Factory
from pruneport.models.source import open_source
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
    state_file = config.out.absolute().with_name(f"{config.out.name}.training")
    with made_folder(state_file.parent), held(beside(state_file, "lock"), config.out):
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
            plan = replace(plan, request=request_of(*target_of(config), resolve_auto(config, calibrated=False)))
        progress(Stage(f"writing {config.out}"))
        with new_bundle(config.out, config.overwrite, command) as staging:
            write_network(staging, rebuild_network(plan, state.weights, factory), plan)
            write_json(staging / TRAINING, {"format_version": 1, "events": [asdict(event) for event in state.events]})
            write_card(staging, plan)
        state_file.unlink()
    return FinetuneResult(folder=config.out, plan=plan, events=tuple(state.events))


def _begin_or_go_on(config: FinetuneConfig, state_file: Path, factory: Factory | None, progress: Progress) -> Job:
    """The training, with its state on disk."""
    settings = _settings(config)
    network = None
    if state_file.exists():
        state = read_state(state_file)
        _check_same(state, settings, state_file)
        progress(Stage(f"going on at step {state.step} of {state_file}"))
        plan = state.plan
    else:
        progress(Stage(f"opening {config.source}"))
        network, plan = _open(config, factory, progress)
        known = replace(plan.source, preprocessing=preprocessing_of(plan, network))
        plan = replace(plan, source=prepared(known, config))
    progress(Stage(f"reading the images of {config.task}"))
    task = open_task(config.task, config, plan.source.image_shape, plan.source.preprocessing)
    if network is not None:
        if plan.source.trained:  # else the seed stands for the weights themselves
            plan = replace(plan, source=replace(plan.source, seed=config.seed))
        network, plan = with_output_layer(network, plan, task, config.keep_head)
        if config.class_names is not None:
            plan = replace(plan, source=named(plan.source, network, config.class_names))
        _check_above(plan, config)
        write_state(state_file, TrainState(plan=plan, weights=dict(network.state_dict()), config=settings))
    return Job(
        state=state_file,
        task=task,
        options=config,
        pruning=config if config.schedule != "none" else None,
        seed=config.seed,
        factory=config.factory,
    )


def _open(options: FinetuneConfig, factory: Factory | None, progress: Progress) -> tuple[nn.Module, Plan]:
    """The network that training starts from, and its plan: a bundle's, or one that prunes nothing."""
    folder = Path(options.source)
    if is_on_hub(options.source) or is_bundle(folder):
        given = [
            f"`{name}`"
            for name in ("checkpoint", "weights", "model_arg", "input_shape")
            if getattr(options, name) != getattr(SourceOptions, name)
        ]
        if given:
            raise SourceError(f"{folder} is a bundle, which knows its own source: leave out {', '.join(given)}.")
        bundle = open_any_bundle(options.source, progress)
        return rebuild(bundle, factory), bundle.plan
    if ":" not in options.source:
        raise SourceError(
            f"there is no bundle at {folder} (a folder written by pruneport compress), and "
            f"{not_a_source(options.source)}"
        )
    network, source = open_source(options)
    return network, dense_plan(network, source)


def _check_schedule(config: FinetuneConfig) -> None:
    """Raise where a target is given without a schedule, or a schedule with another target than compute."""
    if config.schedule == "none":
        given = [f"`{name}`" for name in ("flops", "params", "ratio") if getattr(config, name) is not None]
        if given:
            raise TargetError(
                f"{', '.join(given)} without `schedule`: add `schedule=loss` to prune while training, or prune first "
                "with pruneport compress and train that bundle."
            )
    elif target_of(config)[0] != "flops":
        raise TargetError("`schedule` counts compute: give `flops` in place of `params` or `ratio`.")


def _check_above(plan: Plan, config: FinetuneConfig) -> None:
    """The schedule can only remove."""
    if config.schedule != "none" and config.flops is not None and plan.macs_kept <= config.flops:
        raise TargetError(
            f"`flops` is {config.flops:g} of the dense network, and {config.source} with the new output layer keeps "
            f"{plan.macs_kept:.3g} of it already; give a smaller `flops`, or leave out `schedule` and `flops`."
        )


def _settings(config: FinetuneConfig) -> dict[str, Any]:
    """What makes two trainings the same one, as JSON would give it back."""
    free = {"out", "overwrite", "save_every", "workers"}
    given = {name: value for name, value in asdict(config).items() if name not in free}
    settings: dict[str, Any] = json.loads(json.dumps(given, default=str))
    return settings


def _check_same(state: TrainState, settings: dict[str, Any], file: Path) -> None:
    """Raise where a state is of a training with other settings."""
    changed = [
        f"`{name}` ({state.config.get(name)}, now {value})"
        for name, value in settings.items()
        if state.config.get(name) != value
    ]
    if changed:
        raise TrainingError(
            f"{file} is the state of a training with other settings: {', '.join(changed)}. Give those again to go on, "
            "delete the file to start anew, or choose another `out`."
        )
