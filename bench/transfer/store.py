"""The study's store: every trial and every prediction event, in SQLite's write-ahead mode.

A trial is written in one transaction when it is done, so a killed run loses what was in hand and nothing else.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pruneport.bench.transfer.study import Trial
from pruneport.compress.finetune.state import Event
from pruneport.documents import check_format
from pruneport.errors import OutputError, StoreError
from pruneport.files import held

__all__ = ["FILE", "Finished", "Store", "open_store"]

FILE = "study.sqlite"
_FORMAT_VERSION = 1
_TABLES = """
CREATE TABLE IF NOT EXISTS study (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS trials (
    id INTEGER PRIMARY KEY, trial TEXT UNIQUE NOT NULL, host TEXT NOT NULL, wall_s REAL NOT NULL, error TEXT);
CREATE TABLE IF NOT EXISTS events (
    trial INTEGER NOT NULL REFERENCES trials(id), step INTEGER NOT NULL, flops REAL NOT NULL, error REAL NOT NULL,
    loss REAL NOT NULL, macs INTEGER NOT NULL, seconds REAL NOT NULL, PRIMARY KEY (trial, step));
"""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A trial that is done: its events, or why it cannot be done."""

    trial: Trial
    events: tuple[Event, ...]
    wall_s: float
    host: str
    error: str | None = None


class Store:
    """Reads and writes; see ``open_store``."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection, self._path = connection, path

    def add(self, finished: Finished) -> None:
        """Write one trial, whole or not at all; one that failed before is replaced.

        Raises:
            OutputError: The disk is full or the file cannot be written; nothing of the trial was kept.
        """
        try:
            with self._connection as connection:
                connection.execute("DELETE FROM trials WHERE trial = ? AND error IS NOT NULL", (finished.trial.key,))
                row = connection.execute(
                    "INSERT INTO trials (trial, host, wall_s, error) VALUES (?, ?, ?, ?)",
                    (finished.trial.key, finished.host, finished.wall_s, finished.error),
                ).lastrowid
                connection.executemany(
                    "INSERT INTO events VALUES (:trial, :step, :flops, :error, :loss, :macs, :seconds)",
                    [asdict(event) | {"trial": row} for event in finished.events],
                )
        except sqlite3.OperationalError as error:
            raise OutputError(
                f"{self._path} cannot be written ({error}); what was there is kept. Make room and run the study again."
            ) from error

    def finished(self, asked: Sequence[Trial] = ()) -> list[Finished]:
        """The trials that were asked for, or all where none were, in the order in which they ended."""
        keys = {trial.key for trial in asked}
        events: dict[int, list[Event]] = {}
        fields = ("step", "flops", "error", "loss", "macs", "seconds")
        for row, *values in self._connection.execute(f"SELECT trial, {', '.join(fields)} FROM events ORDER BY step"):
            events.setdefault(row, []).append(Event(**dict(zip(fields, values, strict=True))))
        return [
            Finished(
                trial=Trial(**json.loads(trial)),
                events=tuple(events.get(row, ())),
                wall_s=wall_s,
                host=host,
                error=error,
            )
            for row, trial, host, wall_s, error in self._connection.execute(
                "SELECT id, trial, host, wall_s, error FROM trials ORDER BY id"
            )
            if not keys or trial in keys
        ]

    def missing(self, trials: Sequence[Trial]) -> list[Trial]:
        """The trials that are not in the store, or failed."""
        done = {key for (key,) in self._connection.execute("SELECT trial FROM trials WHERE error IS NULL")}
        return [trial for trial in trials if trial.key not in done]


@contextmanager
def open_store(folder: Path, study: dict[str, Any] | None) -> Iterator[Store]:
    """Open the store of a study, for one process at a time; without a ``study``, only to read.

    Args:
        folder: Holds ``study.sqlite``; made where there is none.
        study: What all its trials share.

    Raises:
        StoreError: It is of another study or a newer format, or no store at all.
        InUseError: Another process is at work on the study.
        OutputError: The folder cannot be written.
    """
    path = folder / FILE
    if study is None and not path.is_file():
        raise StoreError(f"there is no study at {folder}; run one there first: pruneport transfer.")
    try:
        with ExitStack() as stack:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                if study is not None:
                    stack.enter_context(held(folder / "study.lock", folder))
            except OSError as error:
                reason = f"{error.strerror}; choose another folder."
                raise OutputError(f"`out` {folder} cannot be written: {reason}") from error
            connection = stack.enter_context(closing(sqlite3.connect(path)))
            if study is not None:
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=FULL")
                with connection:
                    connection.executescript(_TABLES)
            _check(connection, path, study)
            yield Store(connection, path)
    except sqlite3.OperationalError as error:
        raise OutputError(f"{path} cannot be used ({error}); nothing was lost of what it holds.") from error
    except sqlite3.DatabaseError as error:
        raise StoreError(f"{path} is not a study's store ({error}); choose another `out`.") from error


def _check(connection: sqlite3.Connection, path: Path, study: dict[str, Any] | None) -> None:
    """Raise where the store is of another study; begin one where it is empty."""
    known = dict(connection.execute("SELECT key, value FROM study"))
    if not known and study is not None:
        _begin(connection, study)
        return
    stored = known.get("format_version")  # as text
    version = int(stored) if stored is not None and stored.isdecimal() else stored
    check_format(version, (_FORMAT_VERSION,), path, error=StoreError, otherwise=", or choose another `out`")
    before = json.loads(known["study"])
    if study is None:
        return
    changed_names = [name for name in sorted({*before, *study}) if before.get(name) != study.get(name)]
    if not changed_names:  # an option that an earlier version did not have is not given
        return
    (done,) = connection.execute("SELECT count(*) FROM trials WHERE error IS NULL").fetchone()
    if done == 0:  # settings under which nothing worked bind nobody
        _begin(connection, study)
    else:
        changed = ", ".join(f"{name} ({before.get(name)}, now {study.get(name)})" for name in changed_names)
        raise StoreError(
            f"{path} holds another study, with other settings: {changed}. Give the same ones, or choose another `out`. "
            "(Networks, tasks, shares, budgets, seeds, scopes and recipes may be added.)"
        )


def _begin(connection: sqlite3.Connection, study: dict[str, Any]) -> None:
    """Make the store this study's; it holds no trial that succeeded."""
    with connection:
        connection.execute("DELETE FROM trials")
        connection.executemany(
            "INSERT OR REPLACE INTO study VALUES (?, ?)",
            [("format_version", str(_FORMAT_VERSION)), ("study", json.dumps(study, sort_keys=True))],
        )
