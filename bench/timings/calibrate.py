"""Timings of random allocations, to which a latency model is fitted."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import nn

from pruneport.arrays import FloatArray
from pruneport.bench.latency.timer import DenseTimer, TimedShare
from pruneport.bench.options import RuntimeOptions
from pruneport.bench.timings.slicing import OnnxSlicer
from pruneport.compress.graph.groups import Group
from pruneport.compress.graph.widths import choose_units
from pruneport.compress.group_records import Member
from pruneport.errors import ExportError, ModelError, ProviderError
from pruneport.progress import Note, Progress, Step

__all__ = ["NETWORKS", "Build", "draw_allocations", "rounds_for", "time_allocations"]

NETWORKS = 24
"""How many allocations are timed."""

Build = Callable[[Path, FloatArray], None]
"""Writes the ONNX file of a network whose groups keep so many units."""

_SECONDS = 0.8  # for one network and the dense one beside it, with the default ``repeats``
_LEAST_ROUNDS, _MOST_ROUNDS = 8, 100
_MOST_DROPPED = 0.6  # of the branches, as the mean of a network
_NEAR = 0.3  # of the range of widths: how far groups lie from their common level


def draw_allocations(
    dense: FloatArray,
    widths: Mapping[int, FloatArray],
    count: int = NETWORKS,
    seed: int = 0,
    branches: Sequence[Sequence[int]] = (),
) -> list[FloatArray]:
    """Kept widths of all groups, (groups,) each: the lowest first, then by turns near a common level and at random.

    Of every three networks two lack some of the branches, which are drawn, too; the first lacks all of them.

    Args:
        dense: Dense widths of all groups.
        widths: What each group that can be pruned may keep, ascending.
        count: How many.
        seed: Of what is drawn.
        branches: The groups of each residual branch that may be dropped: they then keep nothing.
    """
    generator = np.random.default_rng(seed)
    drawn = []
    for number in range(count):
        level, kept = generator.uniform(), dense.copy()
        for index, choices in widths.items():
            near = np.clip(level + generator.uniform(-_NEAR, _NEAR), 0, 1)
            place = near if number % 2 == 0 else generator.uniform()
            kept[index] = choices[round(place * (len(choices) - 1))] if number else choices[0]
        share = generator.uniform(0, _MOST_DROPPED) if branches and number % 3 else 0.0
        for groups in branches:
            if number == 0 or generator.uniform() < share:
                kept[list(groups)] = 0
        drawn.append(kept)
    return drawn


def rounds_for(dense_ms: float, repeats: int) -> int:
    """How often a network is timed beside a dense one of this latency: in proportion to ``repeats``."""
    more = repeats / RuntimeOptions.repeats
    return math.ceil(more * min(_MOST_ROUNDS, max(_LEAST_ROUNDS, _SECONDS * 1000 / (2 * dense_ms))))


def time_allocations(
    timer: DenseTimer,
    network: nn.Module,
    dense: Path,
    groups: Sequence[Group],
    allocations: Sequence[FloatArray],
    export: Build,
    progress: Progress,
) -> list[TimedShare]:
    """Time networks of these widths, each in turns with the dense one.

    Their files are sliced from the dense one; where that cannot be done, every network is exported. One that lacks
    branches always is.

    Args:
        timer: Of the dense network.
        network: The dense network in torch.
        dense: Its ONNX file.
        groups: Its groups.
        allocations: Kept widths, (groups,) each.
        export: Makes a file in the slow way.
        progress: Told what is being done.

    Raises:
        ProviderError: The provider does not run them.
    """
    timed: list[TimedShare] = []
    write: Build | None = None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        rounds = rounds_for(timer.time(dense, _LEAST_ROUNDS).dense_ms, timer.options.repeats)
        for number, kept in enumerate(allocations):
            progress(Step(f"timing network {number + 1} of {len(allocations)}", number, len(allocations)))
            try:
                write = write or _slices(network, dense, groups, export)
                write(path, kept)
                timed.append(timer.time(path, rounds, quick=True))
            except (ExportError, ModelError, ProviderError) as error:
                if write is export:
                    raise
                progress(Note(f"every network that is timed is exported, which takes longer: {_first(error)}"))
                write = export
                write(path, kept)
                timed.append(timer.time(path, rounds, quick=True))
    return timed


def _slices(network: nn.Module, dense: Path, groups: Sequence[Group], export: Build) -> Build:
    """Files by slicing, but for those that lack branches."""
    slicer = OnnxSlicer(network, dense)

    def write(path: Path, kept: FloatArray) -> None:
        if not kept.all():
            export(path, kept)
            return
        slicer.write(path, _members_kept(groups, kept))

    return write


def _members_kept(groups: Sequence[Group], kept: FloatArray) -> list[tuple[Member, Sequence[int]]]:
    """The first so many units of each group, whichever they are in the end."""
    return [
        (member, units)
        for group, count in zip(groups, kept, strict=True)
        if count < group.width
        for units in [choose_units(group, np.zeros(group.width), int(count))]
        for member in group.members
    ]


def _first(error: Exception) -> str:
    return str(error).splitlines()[0][:200]
