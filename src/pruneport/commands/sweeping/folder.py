"""The sweep's folder: a bundle for each point, and sweep.json, by which a sweep that was stopped goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from pruneport.bench.devices import describe_device
from pruneport.bench.options import ExecutorOptions
from pruneport.bench.sweep.records import Point, Sweep, figures_of, read_sweep
from pruneport.commands.configs import SweepConfig
from pruneport.commands.records import read_record
from pruneport.commands.sweeping.making import TARGETS
from pruneport.compress.importance.criteria import name_of
from pruneport.documents import read_start
from pruneport.errors import BundleError, OutputError
from pruneport.export.bundle.bundle import BENCH, VERIFY, is_bundle, open_bundle
from pruneport.files import held, made_folder
from pruneport.models.options import SourceOptions
from pruneport.models.record import Source
from pruneport.versions import library_versions

__all__ = ["REPORT", "SWEEP", "check_same", "find_points", "identity_of", "open_folder", "read_point", "untimed"]

SWEEP, REPORT = "sweep.json", "report.html"
_LOCK = ".sweep.lock"
_FREE = {
    "out",
    "accelerator",
    "latency_cache",
    "max_drop",
    "min_speedup",
    "require_speedup",
    *TARGETS,
    *(field.name for field in fields(ExecutorOptions)),
    *(field.name for field in fields(SourceOptions)),
}
_VERSIONS = ("pruneport", "torch", "onnxruntime", "onnxruntime-gpu")


@contextmanager
def open_folder(folder: Path) -> Iterator[Sweep | None]:
    """Hold the sweep's folder for the block; yields what an earlier run wrote of it, None where it is new.

    Raises:
        OutputError: It holds something else, or cannot be written.
        InUseError: Another process is at work on it.
        BundleError: sweep.json is damaged.
    """
    if folder.is_file():
        raise OutputError(f"`out` {folder} is a file; expected a folder that does not exist yet, or that of a sweep.")
    try:
        taken = folder.is_dir() and any(path.name != _LOCK for path in folder.iterdir())
        if taken and not (folder / SWEEP).is_file():
            raise OutputError(f"`out` {folder} is not empty and holds no sweep (no {SWEEP}); choose another folder.")
        with made_folder(folder), held(folder / _LOCK, folder):
            yield _read(folder) if (folder / SWEEP).is_file() else None
    except OSError as error:
        raise OutputError(f"`out` {folder} cannot be written: {error.strerror}; choose another folder.") from error


def _read(folder: Path) -> Sweep:
    return read_sweep(
        read_start(folder / SWEEP),
        f"{folder / SWEEP} is not what pruneport sweep writes",
        "Choose another folder, or remove this one.",
    )


def identity_of(config: SweepConfig, source: Source, target: str) -> dict[str, Any]:
    """Everything that a sweep's figures depend on, but the values of its target: as JSON has it."""
    options = {
        field.name: _plain(field.name, getattr(config, field.name))
        for field in fields(config)
        if field.name not in _FREE
    }
    origin = {name: value for name, value in source.to_dict().items() if name != "checkpoint"}  # its content counts
    device = describe_device(config.provider, config.device)
    machine = {name: device.get(name) for name in ("cpu", "gpu", "available_cores")}
    whole = {"target": target, **options, "source": origin, "device": machine, "versions": library_versions(*_VERSIONS)}
    found: dict[str, Any] = json.loads(json.dumps(whole))
    return found


def _plain(name: str, value: Any) -> Any:
    if name == "criterion":
        return name_of(value)
    return str(value.absolute()) if isinstance(value, Path) else value


def check_same(folder: Path, earlier: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with a sweep of other options.

    Raises:
        OutputError: Names what differs.
    """
    before, after = dict(_leaves(earlier)), dict(_leaves(now))
    names = [name for name in dict.fromkeys((*before, *after)) if before.get(name) != after.get(name)]
    if names:
        options = {field.name for field in fields(SweepConfig)}
        said = "; ".join(
            f"{f'`{name}`' if name in options else name} was {before.get(name)}, is {after.get(name)}"
            for name in names[:10]
        )
        raise OutputError(
            f"`out` {folder} holds a sweep with other options: {said}. Only points and limits may change; choose "
            "another folder."
        )


def _leaves(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in mapping.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", value


def find_points(folder: Path, source: Source, earlier: Sweep | None) -> list[Point]:
    """The points that are there: every bundle that was timed, and what an earlier run could not reach.

    Raises:
        OutputError: A bundle is of another network.
        BundleError: A bundle is damaged.
    """
    known = {point.name: point for point in earlier.points} if earlier else {}
    found = [
        read_point(path, source, known[path.name].searched if path.name in known else True)
        for path in _bundles(folder)
        if (path / BENCH).is_file()
    ]
    there = {point.name for point in found}
    return found + [point for point in known.values() if point.figures is None and point.name not in there]


def untimed(folder: Path) -> list[Path]:
    """Bundles that were made elsewhere, and not timed yet."""
    return [path for path in _bundles(folder) if not (path / BENCH).is_file()]


def _bundles(folder: Path) -> list[Path]:
    return [
        path for path in sorted(folder.iterdir()) if not path.name.startswith(".") and path.is_dir() and is_bundle(path)
    ]


def read_point(folder: Path, source: Source, searched: bool) -> Point:
    """A point from its bundle.

    Raises:
        OutputError: It is of another network.
        BundleError: It is damaged, or was not made by a sweep.
    """
    bundle = open_bundle(folder)
    plan = bundle.plan
    if (plan.source.spec, plan.source.checkpoint_sha256) != (source.spec, source.checkpoint_sha256):
        raise OutputError(f"{folder} is a bundle of another network, {plan.source.spec}; choose another `out`.")
    verified, measured = read_record(bundle, VERIFY), read_record(bundle, BENCH)
    if verified is None or measured is None:
        raise BundleError(f"{folder} is not whole; remove it, and give the same command again.")
    return Point(
        name=folder.name,
        target=plan.request.target,
        value=plan.request.value,
        searched=searched,
        figures=figures_of(plan, verified, measured),
        error="" if verified["ok"] else "ONNX Runtime and torch disagree: see its report.",
    )
