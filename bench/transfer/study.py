"""A transfer study as a list of trials: what it asks for, checked before any work."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args

from pruneport.bench.transfer.executors import check_executor
from pruneport.bench.transfer.options import StudyOptions
from pruneport.compress.activations.calibration import check_count
from pruneport.compress.allocation.target import check_round_to
from pruneport.compress.finetune.checks import check_training
from pruneport.compress.options import CriterionName, RankingName, RecoverName, TrainOptions
from pruneport.errors import InputError
from pruneport.models.digits.tasks import DIGITS_TASKS
from pruneport.models.inputs import check_seed

__all__ = ["DENSE", "DIGITS", "Trial", "check_study", "identity", "names", "train_options", "trials"]

DIGITS = "pruneport:digits-"
DENSE = ("dense", "none")  # scope and recipe of the network that nothing was removed from
_AXES = ("networks", "tasks", "kept", "budgets", "seeds", "scopes", "recipes")
_MEANS = ("executor", "address", "jobs", "memory")


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
            raise InputError(f"the study has no {name}: give `{name}`, or {name} in its file.")
        if len(set(getattr(options, name))) < len(getattr(options, name)):
            raise InputError(f"`{name}` names something twice: {', '.join(map(str, getattr(options, name)))}.")
    if wrong := [kept for kept in options.kept if not 0 < kept <= 1]:
        raise InputError(f"`kept` is {wrong[0]:g}; expected shares above 0, and at most 1 for the dense network.")
    if wrong := [budget for budget in options.budgets if not 0 < budget < math.inf]:
        raise InputError(f"`budgets` has {wrong[0]:g}; expected a finite number of training FLOPs above 0, as 1e12.")
    for seed in options.seeds:
        check_seed(seed, "seeds")
    for recipe in options.recipes:
        _check_recipe(recipe)
    if options.test_images is not None and options.test_images < 1:
        raise InputError(f"`test_images` is {options.test_images}; expected at least 1.")
    check_count(options.calibration_images)
    check_round_to(options.round_to)
    if options.calibration is not None and not options.calibration.is_dir():
        raise InputError(f"no calibration folder {options.calibration}; expected images, in folders or not.")
    if options.jobs is not None and options.jobs < 1:
        raise InputError(f"`jobs` is {options.jobs}; expected at least 1.")
    check_executor(options)
    check_training(train_options(options, Path(), options.budgets[0]))
    for task in options.tasks:
        if task.startswith(DIGITS):
            if task.removeprefix(DIGITS) not in DIGITS_TASKS:
                raise InputError(f"no task {task}; there are {', '.join(DIGITS + name for name in DIGITS_TASKS)}.")
        elif not Path(task).is_dir():
            raise InputError(f"no task folder {task}; expected FOLDER/train/CLASS/IMAGE and FOLDER/test/CLASS/IMAGE.")


def _check_recipe(recipe: str) -> None:
    """Raise where a recipe is no CRITERION/RANKING/RECOVERY."""
    parts = recipe.split("/")
    known = [get_args(names) for names in (CriterionName, RankingName, RecoverName)]
    if len(parts) != len(known) or any(part not in names for part, names in zip(parts, known, strict=True)):
        raise InputError(
            f"`recipes` has {recipe!r}; expected CRITERION/RANKING/RECOVERY, such as l1/uniform/none or "
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
        for scope, recipe in (ways if kept < 1 else [DENSE])
    ]


def train_options(options: StudyOptions, task: Path, budget: float) -> TrainOptions:
    """How every trial of the study trains, on this task and with this budget."""
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
        interpolation=options.interpolation,
        mean=options.mean,
        std=options.std,
        save_every=1e9,  # a trial is the least that is lost
    )


def names(items: Sequence[str]) -> dict[str, str]:
    """Short names for networks and tasks; whole ones where two would have the same."""
    short = {item: item.partition("=")[0].partition("@")[0].rstrip("/").rpartition("/")[2] for item in items}
    shared = Counter(short.values())
    return {item: name if shared[name] == 1 else item for item, name in short.items()}
