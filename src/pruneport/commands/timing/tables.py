"""Which timings a latency model is fitted to: a table that was given, one that is kept, or networks timed now."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from pruneport.bench.options import SWITCHES, LatencyOptions, PlaceOptions, RuntimeOptions
from pruneport.bench.timings.staircase import Staircase
from pruneport.bench.timings.table import LatencyTable, cache_path, place_of, read_table
from pruneport.commands.timing.measuring import DenseFile, fingerprint, measure_table, varied
from pruneport.compress.allocation.latency_model import LatencyForm, Timing
from pruneport.compress.assessment import Assessment
from pruneport.compress.graph.groups import Group
from pruneport.compress.options import PruneOptions
from pruneport.compress.structure import Structure, find_structure
from pruneport.errors import BundleError, InputError, ProviderError
from pruneport.models.record import Source
from pruneport.progress import Note, Progress

__all__ = ["Timings", "check_given", "form_on", "read_given", "timings_for"]


@dataclass(frozen=True, kw_only=True)
class Timings:
    """What a latency model is fitted to.

    Attributes:
        table: The timings.
        here: How networks are timed on this machine as they were for the table; None where it is another machine's.
    """

    table: LatencyTable
    here: PlaceOptions | None

    def to_fit(self, whole: float = 1.0) -> list[Timing]:
        """As a model is fitted to them (for ``whole`` see ``LatencyModel``)."""
        entries = self.table.timings
        return [Timing(kept=np.array(entry.kept, dtype=np.float64), share=whole * entry.share) for entry in entries]


def timings_for(dense: DenseFile, assessed: Assessment, options: LatencyOptions, progress: Progress) -> Timings:
    """The timings to fit a model to: those that were given, else those that are kept, else new ones.

    Raises:
        InputError: The table that was given is of another network, other settings or another version.
        ProviderError: The provider does not run the networks.
    """
    network, groups = fingerprint(assessed, dense.source), varied(assessed)
    if options.latency_table is not None:
        table = read_given(options)
        _check_network(table, options.latency_table, network, groups)
        return Timings(table=table, here=_here(table, options))
    path = cache_path(options.latency_cache, place_of(options), network, groups)
    if path.is_file():
        try:
            table = read_table(path)
            progress(Note(f"timings of {table.created} are used again; to time anew, delete {path}"))
            return Timings(table=table, here=options)
        except BundleError as error:
            progress(Note(f"timings that were kept cannot be read, and are made again: {error}"))
    table = measure_table(dense, assessed, options, progress)
    try:
        table.write(path)
    except OSError as error:
        progress(Note(f"the timings are not kept for the next time: {path}: {error.strerror or error}"))
    return Timings(table=table, here=options)


def read_given(options: LatencyOptions) -> LatencyTable:
    """The table that the options name, which must be of the place that they name.

    Raises:
        InputError: There is none, or it is of another place.
    """
    assert options.latency_table is not None
    table = read_table(options.latency_table)
    place = table.place
    asked = (
        ("provider", options.provider, RuntimeOptions.provider, place.provider),
        ("threads", options.threads, None, place.threads),
        ("latency_batch", options.latency_batch, PlaceOptions.latency_batch, place.batch),
        ("latency_precision", options.latency_precision, None, place.precision),
        *((name, getattr(options, name), False, name in place.switches) for name in SWITCHES),
    )
    if faults := [f"`{name}` is {given}" for name, given, default, there in asked if given not in (default, there)]:
        raise InputError(
            f"{options.latency_table} is of {place}, but {' and '.join(faults)}. Leave that out, or give a table that "
            "was made so."
        )
    return table


def check_given(
    network: nn.Module, source: Source, options: PruneOptions, where: LatencyOptions, progress: Progress
) -> Structure | None:
    """Check that a table, where one is given, is of the network and of what may go, before any of it is measured.

    Args:
        network: The dense network in eval mode.
        source: Where it came from.
        options: What may go.
        where: Names the table.
        progress: Told what is being done.

    Returns:
        What was traced of the network for that, for ``assess``; None where no table is given.

    Raises:
        InputError: It is of another network, or was made without varying all that may go.
        PruningError: The network cannot be traced.
    """
    if where.latency_table is None:
        return None
    structure = find_structure(network, source, options, progress)
    _check_network(read_given(where), where.latency_table, fingerprint(structure, source), varied(structure))
    return structure


def form_on(staircase: Staircase, assessed: Assessment, network: nn.Module) -> LatencyForm:
    """The form of a network's latency on a device."""
    dense = np.array([group.width for group in assessed.groups], dtype=np.float64)
    steps = [_step(group, network, staircase) for group in assessed.groups]
    return LatencyForm(assessed.cost.layer_shares(), dense, np.array(steps, dtype=np.float64))


def _check_network(table: LatencyTable, path: Path, network: str, groups: Sequence[str]) -> None:
    """Raise where a table is no use for a network."""
    if table.network != network:
        raise InputError(
            f"{path} has timings of another network ({table.source}), or of another input shape. Make one of this "
            "network with pruneport latency."
        )
    if missing := sorted(set(groups) - set(table.varied)):
        shown = ", ".join(missing[:10]) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
        raise InputError(
            f"{path} was made without varying {shown}. Make it with the same `scope`, "
            "`prune_representation`, `attention`, `depth` and `keep`."
        )


def _here(table: LatencyTable, options: LatencyOptions) -> PlaceOptions | None:
    """How networks are timed here as they were for a table; None where it is of another device.

    Raises:
        InputError: It is of this device, but of another version of ONNX Runtime or of the driver.
    """
    there = table.place
    switches: dict[str, Any] = {name: name in there.switches for name in SWITCHES}
    alike = replace(
        options,
        provider=there.provider,
        threads=there.threads,
        latency_batch=there.batch,
        latency_precision=there.precision,
        **switches,
    )
    try:
        here = place_of(alike)
    except ProviderError:
        return None
    if replace(here, onnxruntime="", driver=None) != replace(there, onnxruntime="", driver=None):
        return None
    if here != there:
        raise InputError(
            f"{options.latency_table} is of this device, but of another version: {there}. Here is {here}. Make it "
            "again with pruneport latency."
        )
    return alike


def _step(group: Group, network: nn.Module, staircase: Staircase) -> int:
    """The device's step of a group's width, in units."""
    modules = dict(network.named_modules())
    convolutions = [
        member for member in group.members if isinstance(modules.get(member.module), nn.modules.conv._ConvNd)
    ]
    depthwise = any(member.axis == "channels" for member in convolutions)
    step = max(staircase.convolution or 1, (staircase.depthwise or 1) if depthwise else 1)
    return step // math.gcd(step, group.span)
