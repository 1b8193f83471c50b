"""The transfer study as a verb: run what is missing, report, advise."""

from __future__ import annotations

import json
import os
import typing
from pathlib import Path
from typing import Any

import yaml

from pruneport.bench.transfer.analysis.advice import advise
from pruneport.bench.transfer.analysis.summary import summarise
from pruneport.bench.transfer.options import StudyOptions
from pruneport.bench.transfer.report import render_transfer
from pruneport.bench.transfer.runner import STAGES as STUDY
from pruneport.bench.transfer.runner import run_study
from pruneport.bench.transfer.store import Finished, open_store
from pruneport.bench.transfer.study import trials
from pruneport.commands.configs import TransferConfig
from pruneport.commands.flag_values import value_from_file
from pruneport.commands.results import AdviceResult, TransferResult
from pruneport.errors import CheckFailed, InputError
from pruneport.files import write_whole
from pruneport.models.factories import did_you_mean
from pruneport.progress import Progress, Stage, numbered, silent

__all__ = ["read_study", "transfer"]

REPORT, SUMMARY = "report.html", "summary.json"


def transfer(config: TransferConfig, progress: Progress = silent, command: str = "") -> TransferResult | AdviceResult:
    """Run the trials that the store lacks, then summarise and report; or report or advise from what is there.

    Raises:
        InputError: The study cannot be run or read; what is in the store stays.
        CheckFailed: The study ran, and trials of it failed; the report is written.
    """
    folder = config.out or (Path(config.study.stem) if config.study else None)
    if folder is None:
        raise InputError(
            "there is no study, and no `out` to keep one in; give a study, as in: pruneport transfer study.yaml."
        )
    if config.advise:
        if config.budget is None:
            raise InputError("`advise` needs `budget`: the training FLOPs you can spend, such as 1e12.")
        with open_store(folder, None) as store:
            return AdviceResult(advice=advise(store.finished(), config.budget, config.task, config.network))
    given = [f"`{name}`" for name in ("budget", "task", "network") if getattr(config, name) is not None]
    if given:
        raise InputError(f"{', '.join(given)} without `advise`; a study takes lists: `budgets`, `tasks`, `networks`.")
    finished = _finished(config, folder) if config.report else run_study(config, folder, numbered(progress, STUDY))
    progress(Stage("writing the report"))
    summary = summarise(finished, trials(config) or [item.trial for item in finished])
    write_whole(folder / SUMMARY, json.dumps(summary.to_dict(), indent=1, allow_nan=False) + "\n")
    write_whole(folder / REPORT, render_transfer(summary, folder.resolve().name))
    if (failed := summary.trials.failed) and not config.report:
        raise CheckFailed(
            f"{len(failed)} of {summary.trials.wanted} trials failed, the first with: {failed[0].error} "
            f"The report is written, {folder / REPORT}, and {SUMMARY} beside it names them all; the same command runs "
            "them again."
        )
    return TransferResult(folder=folder, summary=summary)


def _finished(config: TransferConfig, folder: Path) -> list[Finished]:
    """What has run of the study; of whatever study it is, where none was given."""
    with open_store(folder, None) as store:
        found = store.finished(trials(config))
    if not found:
        raise InputError(f"nothing of this study has run in {folder}; run it without `report`.")
    return found


def read_study(file: Path) -> dict[str, Any]:
    """The options that a study's file holds, by name; ``$NAME`` in it is the environment's.

    Raises:
        InputError: No such file, not YAML, an option that does not exist, a value that is not of its kind, or a
            variable that is not set.
    """
    try:
        text = os.path.expandvars(file.read_text(encoding="utf-8"))
        content = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"study {file} cannot be read ({error}); expected a .yaml file.") from error
    except yaml.YAMLError as error:
        raise InputError(f"study {file} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"study {file} holds no options; expected lines such as kept: [1.0, 0.5].")
    hints = typing.get_type_hints(StudyOptions)
    values: dict[str, Any] = {}
    for name, value in content.items():
        if name not in hints:
            raise InputError(f"study {file} has no option {name!r}.{did_you_mean(str(name), sorted(hints))}")
        if unset := next((item for item in (value if isinstance(value, list) else [value]) if "$" in str(item)), None):
            raise InputError(f"study {file}: {unset} names a variable that is not set; set it, or write the path out.")
        try:
            values[name] = value_from_file(value, hints[name])
        except ValueError as error:
            raise InputError(f"study {file}: {name} is {error}") from error
    return values
