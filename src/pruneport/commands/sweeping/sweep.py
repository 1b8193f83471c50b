"""sweep: several targets, one assessment, a bundle for each, and one page on the trade-off."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from pruneport.bench.latency.measure import preflight
from pruneport.bench.sweep.picks import best_within, next_kept, pareto_front
from pruneport.bench.sweep.records import Limit, Pick, Point, Sweep
from pruneport.bench.sweep.report import render_sweep
from pruneport.bench.sweep.words import remark_on_pick, said_of_pick
from pruneport.bench.transfer.executors import check_executor
from pruneport.commands.compressing import open_dense
from pruneport.commands.configs import SweepConfig
from pruneport.commands.starting import BundleStart
from pruneport.commands.study_results import SweepResult
from pruneport.commands.sweeping.folder import (
    REPORT,
    SWEEP,
    check_same,
    find_points,
    identity_of,
    open_folder,
    read_point,
    untimed,
)
from pruneport.commands.sweeping.making import EACH, ONCE, TARGETS, Maker, without_target
from pruneport.commands.sweeping.spreading import UNREACHABLE, make_spread, refuse_timed, time_bundle
from pruneport.commands.timing.asked import at_latency_batch, check_latency, refuse_latency
from pruneport.commands.timing.tables import check_given
from pruneport.compress.allocation.target import target_of
from pruneport.errors import InputError, TargetError
from pruneport.export.accuracy import check_max_drop
from pruneport.export.bundle.bundle import open_bundle
from pruneport.export.precisions.providers import check_precisions
from pruneport.files import write_whole
from pruneport.models.record import Source
from pruneport.progress import Note, Progress, Stage, numbered, silent

__all__ = ["sweep"]

_MOST_TRIES = 5
"""Networks that a search between the points may make for each limit: each halves what is left between them."""


def sweep(config: SweepConfig, progress: Progress = silent, command: str = "") -> SweepResult:
    """Prune to every target, ship each, search for what the limits ask, and report; what is there already stays.

    Points that cannot be reached are said in the result, and the others go on: see ``SweepResult.check``.

    Raises:
        InputError: Something that was given cannot be used, or no point can be reached.
    """
    target, values = _check(config)
    if target == "latency":
        config = at_latency_batch(config)
    progress = numbered(progress, 1 + ONCE + len(values) * EACH + 1)
    with open_folder(config.out) as earlier:
        asked = without_target(config)
        dense = open_dense(config, asked, progress, config.max_drop)
        if isinstance(dense.start, BundleStart):
            refuse_latency(target, config, dense.start.name, dense.origin.original if dense.origin else None)
        dense.structure = check_given(dense.start.network, dense.source, asked, config, progress)
        identity = identity_of(config, dense.source, target)
        if earlier is not None:
            check_same(config.out, earlier.identity, identity)
        run = _Run(
            config=config,
            target=target,
            asked=values,
            source=dense.source,
            identity=identity,
            points=find_points(config.out, dense.source, earlier),
            maker=Maker(dense, asked, config, progress, command),
            progress=progress,
            command=command,
        )
        run.make_all()
        progress(Stage("writing the report"))
        return SweepResult(folder=config.out, sweep=run.write())


def _check(config: SweepConfig) -> tuple[str, tuple[float, ...]]:
    """Check, without any work, what is asked.

    Returns:
        The target's name, and its values.

    Raises:
        InputError: Names what is wrong.
    """
    names = [name for name in TARGETS if hasattr(config, name)]
    given = {name: tuple(getattr(config, name)) for name in names if getattr(config, name)}
    if len(given) != 1:
        choices = " and ".join(f"`{name}`" for name in given) or "none"
        raise TargetError(
            f"points of exactly one of {', '.join(f'`{name}`' for name in names)} are needed; given: {choices}. "
            "Example: `flops=0.9 0.75 0.6`."
        )
    target, values = next(iter(given.items()))
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice:
        raise TargetError(f"`{target}` has {', '.join(f'{value:g}' for value in twice)} twice; give each point once.")
    for value in values:
        moved: dict[str, Any] = {target: value}
        target_of(replace(without_target(config), **moved))
    if config.max_drop is not None:
        check_max_drop(config.max_drop)
    if config.min_speedup is not None and not config.min_speedup > 1:
        raise InputError(f"`min_speedup` is {config.min_speedup:g}; expected more than 1, such as 1.5.")
    if config.require_speedup is not None:
        raise InputError("`require_speedup` is for one network; in a sweep, `min_speedup` says how fast it must be.")
    check_precisions(config.precisions, config.provider)
    check_executor(config)
    if config.executor == "ray":
        refuse_timed(target)
    check_latency(config, config, target)
    preflight(config, config.batch_size_fixed)
    return target, values


@dataclass
class _Run:
    """A sweep under way."""

    config: SweepConfig
    target: str
    asked: tuple[float, ...]
    source: Source
    identity: dict[str, Any]
    points: list[Point]
    maker: Maker
    progress: Progress
    command: str

    def make_all(self) -> None:
        """Make the points that are asked for and not there, and those that the limits are searched by.

        Raises:
            TargetError: None can be reached.
        """
        self.points = [
            replace(point, searched=point.searched and point.value not in self.asked)
            for point in self.points
            if point.figures is not None or point.value in self.asked
        ]
        self.write_record()
        if self.config.executor == "ray":
            self.spread()
        for folder in untimed(self.config.out):
            time_bundle(folder, self.config, self.progress, self.command)
            point = read_point(folder, self.source, searched=False)
            self.add(replace(point, searched=point.value not in self.asked))
        for value in self.asked:
            self.make(value, searched=False)
        if not any(point.figures for point in self.points):
            raise TargetError("no point can be reached. " + " ".join(dict.fromkeys(p.error for p in self.points)))
        for limit in self.limits():
            for _ in range(_MOST_TRIES):
                kept = next_kept(self.points, limit)
                if kept is None:
                    break
                self.make(round(1 - kept, 4) if self.target == "ratio" else kept, searched=True)

    def limits(self) -> Sequence[Limit]:
        """What the user would have a network hold."""
        config = self.config
        drop = [Limit(rule="max_drop", value=config.max_drop)] if config.max_drop is not None else []
        speed = [Limit(rule="min_speedup", value=config.min_speedup)] if config.min_speedup is not None else []
        return [*drop, *speed]

    def make(self, value: float, searched: bool) -> None:
        """Make one point, if it is not there; where it cannot be reached, it says why."""
        if any(point.value == value for point in self.points):
            return
        folder = self.config.out / f"{self.target}-{value:g}"
        try:
            self.maker.make(folder, self.target, value)
            point = read_point(folder, self.source, searched)
        except UNREACHABLE as error:
            point = self.left_out(value, searched, str(error))
        self.add(point)

    def spread(self) -> None:
        """Make what is asked for and not there over the cluster, to be timed here.

        Raises:
            InputError: There is no cluster.
            SweepError: Some were not made, for another reason than their target.
        """
        there = {point.value for point in self.points} | {
            open_bundle(path).plan.request.value for path in untimed(self.config.out)
        }
        missing = [value for value in self.asked if value not in there]
        if missing:
            for value, error in make_spread(self.config, self.target, missing, self.progress, self.command):
                if error:
                    self.add(self.left_out(value, False, error))

    def left_out(self, value: float, searched: bool, error: str) -> Point:
        """A point that cannot be reached."""
        name = f"{self.target}-{value:g}"
        self.progress(Note(f"{name} is left out: {error}"))
        return Point(name=name, target=self.target, value=value, searched=searched, figures=None, error=error)

    def add(self, point: Point) -> None:
        """Keep a point, and write down that it is there."""
        self.points.append(point)
        self.write_record()

    def write_record(self) -> Sweep:
        """Write sweep.json as far as it is known."""
        points = sorted(self.points, key=lambda point: point.kept, reverse=True)
        record = Sweep(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            source=self.source.spec,
            trained=self.source.trained,
            identity=self.identity,
            points=tuple(points),
            front=pareto_front(points),
            picks=tuple(_pick(points, limit) for limit in self.limits()),
        )
        write_whole(self.config.out / SWEEP, json.dumps(record.to_dict(), indent=1, allow_nan=False) + "\n")
        return record

    def write(self) -> Sweep:
        """Write sweep.json and the report."""
        record = self.write_record()
        write_whole(self.config.out / REPORT, render_sweep(record))
        return record


def _pick(points: Sequence[Point], limit: Limit) -> Pick:
    best = best_within(points, limit)
    return Pick(
        limit=limit,
        point=None if best is None else best.name,
        said=said_of_pick(points, limit, best),
        remark=remark_on_pick(points, limit, best),
    )
