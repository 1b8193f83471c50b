"""Points of a sweep that are made side by side over a Ray cluster, and timed on this machine, one after the other.

Networks that are timed while others are made, or on different machines, cannot be compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from pruneport.bench.options import BenchOptions
from pruneport.bench.transfer.executors import run_ray
from pruneport.commands.compressing import open_dense
from pruneport.commands.configs import BenchConfig, SweepConfig
from pruneport.commands.deploying import bench
from pruneport.commands.sweeping.making import Maker, labelled, without_target
from pruneport.errors import ExportError, InputError, ModelError, PruningError, SweepError, TargetError
from pruneport.progress import Note, Progress, Stage, Step, silent

__all__ = ["UNREACHABLE", "make_spread", "refuse_timed", "time_bundle"]

UNREACHABLE = (TargetError, PruningError, ModelError, ExportError)
"""Errors of one point alone: the others go on."""


def refuse_timed(target: str) -> None:
    """Refuse a target that cannot be met over Ray, before any work.

    Raises:
        InputError: It is a latency.
    """
    if target == "latency":
        raise InputError(
            "`executor=ray` makes points side by side, and a `latency` target is met by timing while it is made; use "
            "`executor=local`, or `flops`."
        )


def make_spread(
    config: SweepConfig, target: str, values: Sequence[float], progress: Progress, command: str
) -> Iterator[tuple[float, str]]:
    """Make the bundles of these values, untimed; yield each value when it is done, and why it is out of reach.

    Every process assesses the network for itself.

    Raises:
        InputError: Ray is not installed, or there is no cluster at the address.
        SweepError: Some were not made, for another reason than their target.
    """
    progress(Stage(f"making {len(values)} points over Ray"))
    work = partial(_make, config=config, target=target, command=command)
    failed: list[str] = []
    for number, outcome in enumerate(run_ray(work, values, config.expected_gib, config.address), start=1):
        name = f"{target}-{outcome.todo:g}"
        if outcome.error is not None:
            failed.append(f"{name}: {outcome.error}")
            progress(Note(f"{name} was not made: {outcome.error}"))
            continue
        said = f"{name} made on {outcome.host} in {outcome.wall_s:.0f} s" if not outcome.result else f"{name} ended"
        progress(Step(said, number, len(values)))
        yield outcome.todo, outcome.result
    if failed:
        raise SweepError(
            f"{'; '.join(failed)}. What was made is kept: give the same command again for the rest, with more `memory` "
            "where processes were killed."
        )


def _make(value: float, config: SweepConfig, target: str, command: str) -> str:
    """One point, in a process of its own; returns why it is out of reach, or nothing."""
    asked = without_target(config)
    maker = Maker(open_dense(config, asked, silent, config.max_drop), asked, config, silent, command)
    try:
        maker.make_untimed(config.out / f"{target}-{value:g}", target, value)
    except UNREACHABLE as error:
        return str(error)
    return ""


def time_bundle(folder: Path, config: SweepConfig, progress: Progress, command: str) -> None:
    """Time a bundle on this machine, as a sweep would have.

    Raises:
        InputError: The provider does not run it.
    """
    timing: dict[str, Any] = {field.name: getattr(config, field.name) for field in fields(BenchOptions)}
    bench(BenchConfig(folder=folder, **timing), labelled(progress, folder.name), command)
