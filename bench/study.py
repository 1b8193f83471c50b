"""A transfer study as a list of trials, and one trial from a pruned network to its events."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import math
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, get_args

from pruneport.bench.study_options import StudyOptions
from pruneport.compress.allocation import check_round_to
from pruneport.compress.calibration import check_count
from pruneport.compress.compressing import compress_to
from pruneport.compress.options import CompressOptions, CriterionName, RankingName, RecoverName, TrainOptions
from pruneport.compress.starting import dense_plan, with_head
from pruneport.compress.train_state import Event, TrainState, write_state
from pruneport.compress.training import Job, check_training, train
from pruneport.errors import ImageFolderError, InputError, PruneportError
from pruneport.export.bundle import is_bundle, new_bundle, open_bundle
from pruneport.export.weights import rebuild, write_network
from pruneport.models.digits_tasks import DIGITS_TASKS, write_digits_task
from pruneport.models.options import SourceOptions
from pruneport.models.source import open_source
from pruneport.models.tasks import Task, open_task

__all__ = [
    "Preparation",
    "Trial",
    "check_study",
    "check_tasks",
    "identity",
    "preparations",
    "prepare",
    "run_trial",
    "trials",
]

_DIGITS = "pruneport:digits-"
_DENSE = ("dense", "none")  # scope and recipe of the network that nothing was removed from
_AXES = ("networks", "tasks", "kept", "budgets", "seeds", "scopes", "recipes")
_MEANS = ("executor", "address", "jobs", "memory")
_PRUNING = ("round_to", "calibration", "calibration_images", "input_shape", "resize", "mean", "std")


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


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training: everything it depends on, but for what all trials of a study share."""

    network: str
    task: str
    kept: float
    scope: str
    recipe: str
    budget: float
    seed: int

    @property
    def key(self) -> str:
        """Names the trial in the store."""
        return json.dumps(asdict(self), sort_keys=True)


def check_study(options: StudyOptions) -> None:
    """Check a study's numbers and names; ``check_tasks`` looks into the tasks.

    Raises:
        InputError: Something is missing or out of range.
        ImageFolderError: No calibration images are asked for.
    """
    for name in _AXES:
        if not getattr(options, name):
            raise InputError(f"the study has no {name}: give --{name}, or {name} in its file.")
        if len(set(getattr(options, name))) < len(getattr(options, name)):
            raise InputError(f"--{name} names something twice: {', '.join(map(str, getattr(options, name)))}.")
    if wrong := [kept for kept in options.kept if not 0 < kept <= 1]:
        raise InputError(f"--kept is {wrong[0]:g}; expected shares above 0, and at most 1 for the dense network.")
    if wrong := [budget for budget in options.budgets if not 0 < budget < math.inf]:
        raise InputError(f"--budgets has {wrong[0]:g}; expected a finite number of training FLOPs above 0, as 1e12.")
    for recipe in options.recipes:
        _check_recipe(recipe)
    if options.test_images is not None and options.test_images < 1:
        raise InputError(f"--test-images is {options.test_images}; expected at least 1.")
    check_count(options.calibration_images)
    check_round_to(options.round_to)
    if options.calibration is not None and not options.calibration.is_dir():
        raise InputError(f"no calibration folder {options.calibration}; expected images, in folders or not.")
    if options.jobs is not None and options.jobs < 1:
        raise InputError(f"--jobs is {options.jobs}; expected at least 1.")
    if not 0 < options.memory < math.inf:
        raise InputError(f"--memory is {options.memory:g}; expected GiB above 0, such as 3.")
    check_training(_train_options(options, Path(), options.budgets[0]))
    for task in options.tasks:
        if task.startswith(_DIGITS):
            if task.removeprefix(_DIGITS) not in DIGITS_TASKS:
                raise InputError(f"no task {task}; there are {', '.join(_DIGITS + name for name in DIGITS_TASKS)}.")
        elif not Path(task).is_dir():
            raise InputError(f"no task folder {task}; expected FOLDER/train/CLASS/IMAGE and FOLDER/test/CLASS/IMAGE.")


def check_tasks(missing: Iterable[Trial], options: StudyOptions) -> None:
    """Open the tasks that trials need, every image once, so that a bad one is met before anything is pruned.

    Raises:
        InputError: A network cannot be built.
        ImageFolderError: Tasks cannot be used; all are named.
    """
    needed = list(missing)
    shapes = {_input_shape(network, options) for network in dict.fromkeys(trial.network for trial in needed)}
    faults: dict[str, None] = {}
    for task, shape in itertools.product(dict.fromkeys(trial.task for trial in needed), sorted(shapes)):
        try:
            _task(task, options, shape)
        except ImageFolderError as error:
            faults[str(error)] = None
    if faults:
        raise ImageFolderError(" ".join(faults))


def _input_shape(network: str, options: StudyOptions) -> tuple[int, int, int]:
    if options.input_shape is not None:
        return options.input_shape
    try:
        return open_source(_source_options(network, None))[1].input_shape
    except PruneportError as error:
        raise InputError(f"{network} cannot be prepared: {error}") from error


def _check_recipe(recipe: str) -> None:
    parts = recipe.split("/")
    known = [get_args(names) for names in (CriterionName, RankingName, RecoverName)]
    if len(parts) != len(known) or any(part not in names for part, names in zip(parts, known, strict=True)):
        raise InputError(
            f"--recipes has {recipe!r}; expected CRITERION/RANKING/RECOVERY, such as l1/uniform/none or "
            f"auto/auto/auto. Criteria: {', '.join(known[0])}; rankings: {', '.join(known[1])}; recoveries: "
            f"{', '.join(known[2])}."
        )


def identity(options: StudyOptions) -> dict[str, Any]:
    """What all trials share: trials of another study do not belong beside them. Lists may grow."""
    names = [field.name for field in fields(StudyOptions) if field.name not in (*_AXES, *_MEANS)]
    shared = {name: getattr(options, name) for name in names}
    plain: dict[str, Any] = json.loads(json.dumps(shared, default=str))
    return plain


def trials(options: StudyOptions) -> list[Trial]:
    """Every trial, cheap ones first, so that the answer sharpens as the study goes on.

    The dense network is one, whatever the scope and the recipe.
    """
    ways = list(itertools.product(options.scopes, options.recipes))
    grid = itertools.product(options.budgets, options.seeds, options.networks, options.tasks, options.kept)
    return [
        Trial(network=network, task=task, kept=kept, scope=scope, recipe=recipe, budget=budget, seed=seed)
        for budget, seed, network, task, kept in sorted(grid, key=lambda cell: cell[:2])
        for scope, recipe in (ways if kept < 1 else [_DENSE])
    ]


def preparations(options: StudyOptions, folder: Path) -> list[Preparation]:
    """Every network to prune, with all its shares."""
    pruned = tuple(kept for kept in options.kept if kept < 1)
    ways: list[tuple[str, str, tuple[float, ...]]] = [
        (scope, recipe, pruned) for scope, recipe in itertools.product(options.scopes, options.recipes) if pruned
    ]
    ways += [(*_DENSE, (1.0,))] if 1 in options.kept else []
    settings = _settings(options)
    return [
        Preparation(network=network, scope=scope, recipe=recipe, kept=kept, settings=settings, folder=folder)
        for network in options.networks
        for scope, recipe, kept in ways
    ]


def _settings(options: StudyOptions) -> str:
    return json.dumps({name: getattr(options, name) for name in _PRUNING}, default=str)


def prepare(todo: Preparation, options: StudyOptions, progress: Callable[[str], None] = lambda message: None) -> None:
    """Write the bundles that are not there yet.

    Raises:
        InputError: The network cannot be pruned to one of the shares, or not written.
    """
    missing = [kept for kept in todo.kept if not is_bundle(todo.bundle(kept))]
    if not missing:
        return
    dense, source = open_source(_source_options(todo.network, options.input_shape))
    if (todo.scope, todo.recipe) == _DENSE:
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
            mean=options.mean,
            std=options.std,
        )
        for kept in missing
    ]
    for kept, pruned in zip(missing, compress_to(targets, dense, source, progress), strict=True):
        with new_bundle(todo.bundle(kept), overwrite=False, command="pruneport transfer") as staging:
            write_network(staging, pruned.network, pruned.plan)


def run_trial(
    trial: Trial, options: StudyOptions, folder: Path, progress: Callable[[str], None] = lambda message: None
) -> list[Event]:
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
        task = _task(trial.task, options, plan.source.input_shape)
        network, plan = with_head(rebuild(bundle, trust_source=True), plan, task)
        state = Path(scratch) / "state"
        write_state(state, TrainState(plan=plan, weights=dict(network.state_dict()), config={}))
        job = Job(
            state=state,
            task=task,
            options=_train_options(options, Path(trial.task), trial.budget),
            seed=trial.seed,
        )
        return train(job, progress).events


def _source_options(network: str, shape: tuple[int, int, int] | None) -> SourceOptions:
    source, _, checkpoint = network.partition("=")
    source, _, weights = source.partition("@")
    return SourceOptions(
        source=source,
        checkpoint=Path(checkpoint) if checkpoint else None,
        weights=weights or None,
        input_shape=shape,
    )


def _train_options(options: StudyOptions, task: Path, budget: float) -> TrainOptions:
    return TrainOptions(
        task=task,
        budget=budget,
        batch_size=options.batch_size,
        optimizer=options.optimizer,
        learning_rate=options.learning_rate,
        augment=options.augment,
        evaluations=options.evaluations,
        precision=options.precision,
        resize=options.resize,
        mean=options.mean,
        std=options.std,
        save_every=1e9,  # a trial is the least that is lost
    )


@functools.lru_cache(maxsize=8)
def _task(name: str, options: StudyOptions, shape: tuple[int, int, int]) -> Task:
    """The task, with its images kept in memory from one trial of this process to the next."""
    folder = _digits_folder(name.removeprefix(_DIGITS)) if name.startswith(_DIGITS) else Path(name)
    task = open_task(folder, options, shape)
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
        raise InputError(f"{_DIGITS}{name} needs scikit-learn: pip install 'pruneport[demo]'.") from error
    return folder


def names(items: Sequence[str]) -> dict[str, str]:
    """Short names for networks and tasks; whole ones where two would have the same."""
    short = {item: item.partition("=")[0].partition("@")[0].rstrip("/").rpartition("/")[2] for item in items}
    shared = Counter(short.values())
    return {item: name if shared[name] == 1 else item for item, name in short.items()}
