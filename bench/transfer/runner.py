"""The study, run: what is missing in the store is prepared, trained and written, and nothing twice."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pruneport.bench.transfer.eta import work_left
from pruneport.bench.transfer.executors import Outcome, run_local, run_ray, workers_that_fit
from pruneport.bench.transfer.options import StudyOptions
from pruneport.bench.transfer.store import FILE, Finished, Store, open_store
from pruneport.bench.transfer.study import Trial, check_study, identity, names, trials
from pruneport.bench.transfer.trial import Preparation, check_tasks, preparations, prepare, run_trial
from pruneport.compress.finetune.training import training_flops
from pruneport.errors import InputError
from pruneport.export.bundle.bundle import open_bundle
from pruneport.progress import Progress, Stage, Step, silent

__all__ = ["STAGES", "run_study"]

STAGES = 3
"""How many a study has that still has trials to run."""


def run_study(options: StudyOptions, folder: Path, progress: Progress = silent) -> list[Finished]:
    """Run every trial that the store lacks.

    Args:
        options: The grid.
        folder: Holds the store and the pruned networks; made where there is none.
        progress: Told how far it is, with an estimate of the time left.

    Returns:
        The study's trials, those of earlier runs included.

    Raises:
        InputError: The study cannot be run; what is in the store stays.
    """
    check_study(options)
    wanted = trials(options)
    missing = _missing(options, folder, wanted)
    if missing:
        progress(Stage("reading the tasks"))
        check_tasks(missing, options)
    with open_store(folder, identity(options)) as store:
        missing = store.missing(wanted)
        if missing:
            todo = _needed(options, folder, missing)
            _prepare(options, todo, progress)
            _check_budgets(options, todo, min(trial.budget for trial in missing))
            _run(options, folder, missing, store, progress)
        return store.finished(wanted)


def _missing(options: StudyOptions, folder: Path, wanted: Sequence[Trial]) -> Sequence[Trial]:
    """What is left to run; where there is no store yet, none is made."""
    if not (folder / FILE).is_file():
        return wanted
    with open_store(folder, identity(options)) as store:
        return store.missing(wanted)


def _needed(options: StudyOptions, folder: Path, missing: Sequence[Trial]) -> list[Preparation]:
    needed = {trial.network for trial in missing}
    return [item for item in preparations(options, (folder / "networks").absolute()) if item.network in needed]


def _prepare(options: StudyOptions, todo: Sequence[Preparation], progress: Progress) -> None:
    """Write the pruned networks, several at a time."""
    progress(Stage(f"pruning {len({item.network for item in todo})} networks to {len(options.kept)} shares"))
    for number, outcome in enumerate(
        run_local(functools.partial(prepare, options=options), todo, _workers(options, len(todo))), start=1
    ):
        if outcome.error is not None:
            raise InputError(f"{outcome.todo.network} cannot be prepared: {outcome.error}")
        progress(Step(f"{outcome.todo.network} is pruned ({outcome.wall_s:.0f} s)", number, len(todo)))


def _check_budgets(options: StudyOptions, prepared: Sequence[Preparation], least: float) -> None:
    """Raise where the smallest budget does not pay for one step of the largest network."""
    for item in prepared:
        for kept in item.kept:
            macs = open_bundle(item.bundle(kept)).plan.pruned.macs
            step = options.batch_size * training_flops(macs)
            if step > least:
                raise InputError(
                    f"a step of {options.batch_size} images costs {item.network} at {kept:g} {step:.2e} FLOPs, which "
                    f"is more than the smallest budget, {least:.2e}; give larger `budgets` or a smaller `batch_size`."
                )


def _run(options: StudyOptions, folder: Path, missing: Sequence[Trial], store: Store, progress: Progress) -> None:
    """Train all trials that are missing, and store each when it is done."""
    progress(Stage(f"training {len(missing)} trials"))
    begun, busy = time.monotonic(), 0.0
    finished = store.finished()
    waiting = set(missing)
    short = names([*options.networks, *options.tasks])
    work = functools.partial(run_trial, options=options, folder=(folder / "networks").absolute())
    for number, outcome in enumerate(_outcomes(options, work, missing), start=1):
        trial: Trial = outcome.todo
        done = Finished(
            trial=trial,
            events=tuple(outcome.result or ()),
            wall_s=outcome.wall_s,
            host=outcome.host,
            error=outcome.error,
        )
        store.add(done)
        finished.append(done)
        waiting.remove(trial)
        busy += done.wall_s
        at_once = busy / (time.monotonic() - begun) or 1.0
        left = work_left(finished, waiting) / at_once
        said = outcome.error or f"error {outcome.result[-1].error:.1%}"
        line = (
            f"{number}/{len(missing)} {short[trial.network]} at {trial.kept:g} on {short[trial.task]} with "
            f"{trial.budget:.1e} FLOPs, seed {trial.seed}: {said}; about {left / 60:.0f} min left"
        )
        progress(Step(line, number, len(missing), left))


def _outcomes(options: StudyOptions, work: Any, missing: Sequence[Trial]) -> Iterator[Outcome]:
    if options.executor == "ray":
        return run_ray(work, missing, options.expected_gib, options.address)
    return run_local(work, missing, _workers(options, len(missing)))


def _workers(options: StudyOptions, todo: int) -> int:
    return max(1, min(todo, workers_that_fit(options.expected_gib, options.jobs)))
