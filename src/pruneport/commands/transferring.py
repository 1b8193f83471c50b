"""The transfer study as a verb: run what is missing, report, advise."""

from __future__ import annotations

import json
import os
import typing
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml

from pruneport.bench.transfer.analysis.advice import advise
from pruneport.bench.transfer.analysis.summary import summarise
from pruneport.bench.transfer.options import StudyOptions
from pruneport.bench.transfer.report import render_transfer
from pruneport.bench.transfer.runner import STAGES as STUDY
from pruneport.bench.transfer.runner import run_study
from pruneport.bench.transfer.store import Finished, open_store
from pruneport.bench.transfer.study import trials
from pruneport.commands.arguments.flag_values import kind_of, likely
from pruneport.commands.configs import TransferConfig
from pruneport.commands.study_results import AdviceResult, TransferResult
from pruneport.errors import CheckFailed, InputError
from pruneport.files import write_whole
from pruneport.models.factories import did_you_mean
from pruneport.models.files import not_a_file
from pruneport.models.options import given_of
from pruneport.progress import Progress, Stage, numbered, silent

__all__ = ["read_study", "transfer"]

REPORT, SUMMARY = "report.html", "summary.json"
_IN_FILES: dict[Any, str] = {
    int: "one whole number",
    float: "one number",
    tuple[int, ...]: "whole numbers, such as [1, 8]",
    tuple[float, ...]: "numbers, such as [1.0, 0.5]",
    tuple[int, int, int]: "three whole numbers C, H, W, such as [3, 224, 224]",
}


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
        if config.report:
            raise InputError("`advise` and `report` are two ways to read a study; give one of them.")
        if config.budget is None:
            raise InputError("`advise` needs `budget`: the training FLOPs you can spend, such as 1e12.")
        with open_store(folder, None) as store:
            return AdviceResult(advice=advise(store.finished(), config.budget, config.task, config.network))
    if given := given_of(config, ("budget", "task", "network")):
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
    if fault := not_a_file(file):
        raise InputError(f"study {file} {fault}; expected a .yaml file.")
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
            values[name] = _value(value, hints[name])
        except ValueError as error:
            raise InputError(f"study {file}: {name} is {error}") from error
    return values


def _value(value: Any, hint: Any) -> Any:
    """Read the value of an option from YAML: in place of a list of one, its entry will do.

    Raises:
        ValueError: It is not of the option's kind; the message says what was expected.
    """
    kind = kind_of(hint)
    several = typing.get_origin(kind) is tuple
    items = value if isinstance(value, list) else [value]
    words = [str(item) for item in items]  # YAML makes a number of a folder's name 2024, and text of 1e9
    inner = typing.get_args(kind)[0] if several else kind
    choices = typing.get_args(inner) if typing.get_origin(inner) is Literal else ()
    if wrong := next((word for word in words if choices and word not in choices), None):
        raise ValueError(f"{wrong!r}; expected one of {', '.join(choices)}.{did_you_mean(wrong, choices)}")

    try:
        return _convert(words, kind, several)
    except ValueError:
        meant = ""
        for guess in likely(words) if kind in _IN_FILES else ():
            with suppress(ValueError):
                _convert(guess, kind, several)
                meant = f" Did you mean {_as_yaml(guess, several)}?"
                break
        raise ValueError(
            f"{_as_yaml(words, len(words) != 1)}; expected {_IN_FILES.get(kind, 'one value')}.{meant}"
        ) from None


def _as_yaml(words: list[str], several: bool) -> str:
    return f"[{', '.join(words)}]" if several else words[0]


def _convert(words: list[str], kind: Any, several: bool) -> Any:
    """Make a value of its kind of what was read as text.

    Raises:
        ValueError: It is of another kind; msgspec's errors are such, too.
    """
    if not several and len(words) != 1:
        raise ValueError(words)
    given = words if several else words[0]
    return msgspec.convert(given, kind, strict=False, dec_hook=lambda made, word: made(word))
