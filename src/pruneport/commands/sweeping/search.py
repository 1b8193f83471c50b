"""ship without a target: the fastest network that loses no more than the user allows, found by halving."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pruneport.bench.sweep.picks import best_within, next_kept
from pruneport.bench.sweep.records import Limit, Point
from pruneport.bench.sweep.words import said_of_pick, worth
from pruneport.commands.bundling import Filled
from pruneport.commands.compressing import open_dense
from pruneport.commands.configs import ShipConfig
from pruneport.commands.sweeping.folder import read_point
from pruneport.commands.sweeping.making import EACH, ONCE, TARGETS, Maker, without_target
from pruneport.commands.timing.asked import check_latency
from pruneport.compress.allocation.target import check_choice
from pruneport.compress.options import PruneOptions
from pruneport.compress.prune import Pruned
from pruneport.errors import AccuracyError, PruningError, TargetError
from pruneport.export.bundle.bundle import check_hashes, read_bundle
from pruneport.export.bundle.writing import check_output, placed_bundle
from pruneport.files import beside, held, made_folder
from pruneport.progress import Note, Progress, Stage, numbered

__all__ = ["has_target", "search"]

_TARGET = "flops"
_TRIES = 6
"""Halvings of what lies between the dense network and nothing: they end within 1/64 of its compute."""


def has_target(options: PruneOptions) -> bool:
    """Whether it is said how much is kept."""
    return any(getattr(options, name) is not None for name in TARGETS)


def search(config: ShipConfig, max_drop: float, progress: Progress, command: str) -> tuple[Pruned, Filled]:
    """Make networks of half the compute, then more or less, until the fastest within the limit is known; it is kept.

    Raises:
        InputError: Something that was given cannot be used; nothing is written.
        AccuracyError: No network that loses so little was found; nothing is written.
    """
    progress = numbered(progress, 1 + ONCE + _TRIES * EACH + 1)
    check_output(config.out, config.overwrite)
    check_choice(config)
    check_latency(config, config, _TARGET)
    asked = without_target(config)
    dense = open_dense(config, asked, progress, max_drop)
    maker = Maker(dense, asked, config, progress, command, max_drop)
    limit = Limit(rule="max_drop", value=max_drop)
    points: list[Point] = []
    best: tuple[Pruned, Filled] | None = None
    with _workshop(config.out) as folder:
        while len(points) < _TRIES and (value := next_kept(points, limit, lowest=0.0)) is not None:
            place = folder / f"{_TARGET}-{value:g}"
            try:
                made = maker.make(place, _TARGET, value)
                points.append(read_point(place, dense.source, searched=True))
                figures = points[-1].figures
                progress(Note(f"{_TARGET} {value:g}: {worth(figures) if figures else points[-1].error}"))
            except (TargetError, PruningError) as error:
                points.append(
                    Point(name=place.name, target=_TARGET, value=value, searched=True, figures=None, error=str(error))
                )
                progress(Note(f"{_TARGET} {value:g} cannot be reached; a higher one is tried"))
                continue
            chosen = best_within(points, limit)
            if chosen is points[-1]:
                best = made
        chosen = best_within(points, limit)
        if chosen is None or best is None:
            raise _not_found(points, limit)
        progress(Stage("keeping the fastest"))
        with placed_bundle(config.out, config.overwrite) as staging:
            shutil.copytree(folder / chosen.name, staging, dirs_exist_ok=True)
            check_hashes(read_bundle(staging))
    return best


def _not_found(points: list[Point], limit: Limit) -> Exception:
    if all(point.figures is None for point in points):
        return TargetError(points[0].error)
    return AccuracyError(
        f"{said_of_pick(points, limit, None)} Give calibration images with `calibration=FOLDER`, or more of them, "
        "allow a larger `max_drop`, or fine-tune with pruneport finetune."
    )


@contextmanager
def _workshop(out: Path) -> Iterator[Path]:
    """A hidden folder beside the bundle for the networks that are tried; it goes when the block ends."""
    folder = beside(out.absolute(), "search")
    with made_folder(folder.parent), held(beside(out.absolute(), "search.lock"), out):
        shutil.rmtree(folder, ignore_errors=True)  # of a search that was killed
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
