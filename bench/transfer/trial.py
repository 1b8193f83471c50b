"""The networks that a study trains, pruned and written as bundles, and one trial from a bundle to its events."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import re
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from multiprocessing.util import Finalize
from pathlib import Path

from pruneport.bench.transfer.options import StudyOptions
from pruneport.bench.transfer.study import DENSE, DIGITS, Trial, train_options
from pruneport.compress.finetune.setup import dense_plan, with_output_layer
from pruneport.compress.finetune.state import Event, TrainState, write_state
from pruneport.compress.finetune.training import Job, train
from pruneport.compress.options import CompressOptions
from pruneport.compress.pipeline import compress_to
from pruneport.errors import ImageFolderError, InputError, PruneportError
from pruneport.export.bundle.bundle import is_bundle, open_bundle
from pruneport.export.bundle.weights import rebuild, write_network
from pruneport.export.bundle.writing import new_bundle
from pruneport.models.digits.tasks import write_digits_task
from pruneport.models.images.tasks import Task, open_task
from pruneport.models.options import SourceOptions
from pruneport.models.preparation.resolve import prepared
from pruneport.models.record import Preprocessing
from pruneport.models.source import open_source
from pruneport.progress import Progress, silent

__all__ = ["Preparation", "check_tasks", "preparations", "prepare", "run_trial"]

_PRUNING = ("round_to", "calibration", "calibration_images", "input_shape", "resize", "interpolation", "mean", "std")


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """One network, pruned in one way to several shares; the dense one is a way of its own, to the share 1.

    Attributes:
        settings: What else of the study the pruned network depends on, in words.
    """

    network: str
    scope: str
    recipe: str
    kept: tuple[float, ...]
    settings: str
    folder: Path

    def bundle(self, kept: float) -> Path:
        """Where the network with this share lies."""
        name = re.sub(r"[^A-Za-z0-9]+", "-", self.network.partition("=")[0].rpartition("/")[2])
        made_of = f"{self.network} {self.scope} {self.recipe} {self.settings}"
        digest = hashlib.sha256(made_of.encode()).hexdigest()[:8]
        return self.folder / f"{name}-{digest}-{kept:g}"


def check_tasks(missing: Iterable[Trial], options: StudyOptions) -> None:
    """Open the tasks that trials need, every image once, so that a bad one is met before anything is pruned.

    Raises:
        InputError: A network cannot be built.
        ImageFolderError: Tasks cannot be used; all are named.
    """
    needed = list(missing)
    inputs = {_input_of(network, options) for network in dict.fromkeys(trial.network for trial in needed)}
    faults: dict[str, None] = {}
    for task, (shape, known) in itertools.product(
        dict.fromkeys(trial.task for trial in needed), sorted(inputs, key=str)
    ):
        try:
            _task(task, options, shape, known)
        except ImageFolderError as error:
            faults[str(error)] = None
    if faults:
        raise ImageFolderError(" ".join(faults))


def _input_of(network: str, options: StudyOptions) -> tuple[tuple[int, int, int], Preprocessing | None]:
    """The network's input shape, which the study may give, and what is known of its images' preprocessing."""
    try:
        source = open_source(_source_options(network, options.input_shape))[1]
        return source.image_shape, source.preprocessing
    except PruneportError as error:
        raise InputError(f"{network} cannot be prepared: {error}") from error


def preparations(options: StudyOptions, folder: Path) -> list[Preparation]:
    """Every network to prune, with all its shares."""
    pruned = tuple(kept for kept in options.kept if kept < 1)
    ways: list[tuple[str, str, tuple[float, ...]]] = [
        (scope, recipe, pruned) for scope, recipe in itertools.product(options.scopes, options.recipes) if pruned
    ]
    ways += [(*DENSE, (1.0,))] if 1 in options.kept else []
    settings = _settings(options)
    return [
        Preparation(network=network, scope=scope, recipe=recipe, kept=kept, settings=settings, folder=folder)
        for network in options.networks
        for scope, recipe, kept in ways
    ]


def _settings(options: StudyOptions) -> str:
    return json.dumps({name: getattr(options, name) for name in _PRUNING}, default=str)


def prepare(todo: Preparation, options: StudyOptions, progress: Progress = silent) -> None:
    """Write the bundles that are not there yet.

    Raises:
        InputError: The network cannot be pruned to one of the shares, or not written.
    """
    missing = [kept for kept in todo.kept if not is_bundle(todo.bundle(kept))]
    if not missing:
        return
    dense, source = open_source(_source_options(todo.network, options.input_shape))
    source = prepared(source, options)
    if (todo.scope, todo.recipe) == DENSE:
        with new_bundle(todo.bundle(1.0), overwrite=False, command="pruneport transfer") as staging:
            write_network(staging, dense, dense_plan(dense, source))
        return
    criterion, ranking, recovery = todo.recipe.split("/")
    targets = [
        CompressOptions(
            flops=kept,
            criterion=criterion,  # type: ignore[arg-type]
            ranking=ranking,  # type: ignore[arg-type]
            round_to=options.round_to,
            scope=todo.scope,  # type: ignore[arg-type]
            recover=recovery,  # type: ignore[arg-type]
            calibration=options.calibration,
            calibration_images=options.calibration_images,
            resize=options.resize,
            interpolation=options.interpolation,
            mean=options.mean,
            std=options.std,
        )
        for kept in missing
    ]
    for kept, pruned in zip(missing, compress_to(targets, dense, source, progress), strict=True):
        with new_bundle(todo.bundle(kept), overwrite=False, command="pruneport transfer") as staging:
            write_network(staging, pruned.network, pruned.plan)


def run_trial(trial: Trial, options: StudyOptions, folder: Path, progress: Progress = silent) -> list[Event]:
    """Train the trial's network on its task.

    Args:
        trial: Which.
        options: The study.
        folder: Holds the bundles that ``prepare`` wrote.
        progress: Told how far it is.

    Raises:
        InputError: The budget is below one step, or the task does not fit the network.
    """
    where = Preparation(
        network=trial.network,
        scope=trial.scope,
        recipe=trial.recipe,
        kept=(trial.kept,),
        settings=_settings(options),
        folder=folder,
    )
    bundle = open_bundle(where.bundle(trial.kept))
    plan = replace(bundle.plan, source=replace(bundle.plan.source, seed=trial.seed))
    with tempfile.TemporaryDirectory() as scratch:
        task = _task(trial.task, options, plan.source.image_shape, plan.source.preprocessing)
        network, plan = with_output_layer(rebuild(bundle, trust_source=True), plan, task)
        state = Path(scratch) / "state"
        write_state(state, TrainState(plan=plan, weights=dict(network.state_dict()), config={}))
        job = Job(
            state=state,
            task=task,
            options=train_options(options, Path(trial.task), trial.budget),
            seed=trial.seed,
        )
        return train(job, progress).events


def _source_options(network: str, shape: tuple[int, int, int] | None) -> SourceOptions:
    """The source that a network of the study names, as SPEC, SPEC@WEIGHTS or SPEC=CHECKPOINT."""
    source, _, checkpoint = network.partition("=")
    source, _, weights = source.partition("@")
    return SourceOptions(
        source=source,
        checkpoint=Path(checkpoint) if checkpoint else None,
        weights=weights or None,
        input_shape=shape,
    )


@functools.lru_cache(maxsize=8)
def _task(name: str, options: StudyOptions, shape: tuple[int, int, int], known: Preprocessing | None) -> Task:
    """The task, with its images kept in memory from one trial of this process to the next."""
    folder = _digits_folder(name.removeprefix(DIGITS)) if name.startswith(DIGITS) else Path(name)
    task = open_task(folder, options, shape, known)
    count, most = len(task.test), options.test_images
    if most is not None and most < count:
        task = replace(task, test=task.test.part([row * count // most for row in range(most)]))
    return replace(task, name=name)


@functools.lru_cache
def _digits_folder(name: str) -> Path:
    """A folder with a task made of scikit-learn's digits, for as long as this process lives."""
    folder = Path(tempfile.mkdtemp(prefix="pruneport-digits-"))
    # A pool's processes leave out what atexit would do.
    Finalize(None, shutil.rmtree, args=(folder,), kwargs={"ignore_errors": True}, exitpriority=0)
    try:
        write_digits_task(name, folder)
    except ModuleNotFoundError as error:
        raise InputError(f"{DIGITS}{name} needs scikit-learn: pip install scikit-learn") from error
    return folder
