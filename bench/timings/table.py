"""Tables of timings: what a latency model is fitted to, kept for the next time or carried to another machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from pruneport.bench.devices import available_cores, describe_device, latency_versions
from pruneport.bench.latency.timer import ClockName
from pruneport.bench.options import SWITCHES, PlaceOptions, ProviderName, TimedPrecision
from pruneport.bench.timings.staircase import Staircase
from pruneport.compress.allocation.forms import LayerShares
from pruneport.compress.graph.groups import Group
from pruneport.documents import Count, Size, fit_document, load_document, read_start
from pruneport.errors import InputError
from pruneport.files import made_folder, write_whole
from pruneport.models.files import not_a_file
from pruneport.models.inputs import InputSpec

__all__ = ["LatencyTable", "Place", "TimedWidths", "cache_path", "network_sha256", "place_of", "read_table"]

_AboveZero = Annotated[float, msgspec.Meta(gt=0)]
_ADVICE = "Make it again with pruneport latency."


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where timings hold: all that a latency depends on besides the network.

    Attributes:
        provider: Of ONNX Runtime.
        device: Name of the processor or the GPU.
        driver: Version of the GPU's; None on the CPU.
        onnxruntime: Version.
        threads: Inside an operator; None on a GPU.
        batch: Images of a run.
        precision: Of weights and activations.
        switches: Options of the provider that were on.
    """

    provider: ProviderName
    device: str
    driver: str | None
    onnxruntime: str
    threads: Count | None
    batch: Size
    precision: TimedPrecision = "fp32"
    switches: tuple[str, ...] = ()

    def __str__(self) -> str:
        """In words."""
        threads = "" if self.threads is None else f", {self.threads} thread{'s' if self.threads > 1 else ''}"
        switches = "".join(f", {switch}" for switch in self.switches)
        driver = "" if self.driver is None else f" (driver {self.driver})"
        return (
            f"{self.provider} on {self.device}{driver}, ONNX Runtime {self.onnxruntime}{threads}, batch {self.batch}, "
            f"{self.precision}{switches}"
        )


@dataclass(frozen=True, kw_only=True)
class TimedWidths:
    """One allocation: units kept by each group, and its latency as a share of the dense one (see ``TimedShare``)."""

    kept: tuple[Count, ...]
    share: _AboveZero
    low: _AboveZero
    high: _AboveZero
    wall_share: _AboveZero


@dataclass(frozen=True, kw_only=True)
class LatencyTable:
    """The content of a table's file.

    Attributes:
        created: When, in ISO format.
        source: The network, for people.
        place: Where the timings hold.
        network: From ``network_sha256``.
        varied: Names of the groups whose widths were varied.
        staircase: The device's width steps.
        clock: What was counted.
        dense_ms: Latency of the dense network, by ``clock``.
        timings: Of each allocation.
    """

    format_version: int = 1
    created: str
    source: str
    place: Place
    network: str
    varied: tuple[str, ...]
    staircase: Staircase
    clock: ClockName
    dense_ms: _AboveZero
    timings: Annotated[tuple[TimedWidths, ...], msgspec.Meta(min_length=3, max_length=10_000)]

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            OSError: It cannot be written.
        """
        with made_folder(path.absolute().parent):
            write_whole(path, json.dumps(asdict(self), indent=1) + "\n")


def read_table(path: Path) -> LatencyTable:
    """Read a table.

    Raises:
        BundleError: It is damaged, or of a newer format.
        InputError: There is no such file, or it is none that can be read.
    """
    if fault := not_a_file(path):
        raise InputError(
            f"`latency_table`: {path} {fault}; expected a table of latencies, a file that pruneport latency SOURCE "
            "writes."
        )
    name = f"{path} is not a table of latencies"
    loaded = load_document(read_start(path), (1,), name, _ADVICE)
    return fit_document(loaded, LatencyTable, name, _ADVICE)


def place_of(options: PlaceOptions) -> Place:
    """This machine, as the options use it.

    Raises:
        ProviderError: A GPU provider is asked for, and there is none.
    """
    device, cpu = describe_device(options.provider, options.device), options.provider == "cpu"
    return Place(
        provider=options.provider,
        device=str(device["cpu"] if cpu else device["gpu"]),
        driver=None if cpu else str(device["driver"]),
        onnxruntime=latency_versions()["onnxruntime"],
        threads=(options.threads or available_cores()) if cpu else None,
        batch=options.latency_batch,
        precision=options.latency_precision or "fp32",
        switches=tuple(name for name in SWITCHES if getattr(options, name)),
    )


def network_sha256(groups: Sequence[Group], layers: LayerShares, takes: InputSpec) -> str:
    """What tells one architecture from another: its groups, their layers and the compute of each; weights do not count.

    Args:
        groups: Of the dense network.
        layers: Its layers.
        takes: Its inputs.
    """
    content = {
        "input": str(takes),
        "groups": [
            [group.name, group.width, group.blocks, [[m.module, m.axis, m.size] for m in group.members]]
            for group in groups
        ],
        "macs": sorted(float(macs) for macs in layers.macs),
    }
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def cache_path(folder: Path | None, place: Place, network: str, varied: Sequence[str]) -> Path:
    """Where the timings of a network on a machine are kept.

    Args:
        folder: The user's choice; else the system's folder for caches.
        place: The machine, and how it is used.
        network: From ``network_sha256``.
        varied: Names of the groups that may be pruned.
    """
    import platformdirs  # only who times needs it

    key = hashlib.sha256(json.dumps([asdict(place), network, list(varied)]).encode()).hexdigest()
    return (folder or platformdirs.user_cache_path("pruneport") / "latency") / f"{key[:32]}.json"
