"""ship, by keyword arguments."""

from __future__ import annotations

from os import PathLike, fspath
from typing import Any, Unpack

from pruneport.commands.api.bundles import COMMAND
from pruneport.commands.api.configured import macs_for_flops, options_from
from pruneport.commands.api.keywords import PathName, ShipKeywords
from pruneport.commands.configs import ShipConfig
from pruneport.commands.results import ShipResult
from pruneport.commands.shipping import ship as ship_config
from pruneport.errors import SourceError
from pruneport.progress import Progress, silent

__all__ = ["check_source", "ship"]


def ship(
    source: PathName,
    *,
    out: PathName,
    macs: float | None = None,
    params: float | None = None,
    ratio: float | None = None,
    latency: float | None = None,
    latency_ms: float | None = None,
    progress: Progress = silent,
    **options: Unpack[ShipKeywords],
) -> ShipResult:
    """Compress, export, verify, time and report: from a source to a bundle, in one call.

    Args:
        source: torchvision:NAME, timm:NAME, pruneport:NAME, package.module:factory or path/to/file.py:factory; or a
            bundle to compress further: its folder, or ``hf-hub:owner/name``. ``macs`` and ``params`` are shares of its
            original dense network all the same, ``ratio`` is of the filters that it has left.
        out: The bundle's folder; it must not exist yet, or be empty.
        macs: Keep this share of the compute, in (0, 1). Exactly one of the five targets is given; or none, with
            ``max_drop``: then the fastest network that loses no more points of top-1 is searched for.
        params: Keep this share of the parameters.
        ratio: Remove this share of the filters.
        latency: Keep this share of the latency at ``latency_batch``, as timed.
        latency_ms: The same in milliseconds.
        progress: Told what is being done.
        **options: Fields of ``ShipConfig``, such as ``checkpoint``, ``weights``, ``calibration``, ``images``.

    Returns:
        The bundle, with ``network``, ``speedup``, ``accuracy`` and ``report``.

    Raises:
        InputError: Something that was given cannot be used; nothing is written.
        ParityError: The outputs differ by more than the tolerance; the bundle holds the evidence.
        SpeedupError: ``require_speedup`` was not reached; the bundle holds the evidence.
        AccuracyError: More than ``max_drop`` was lost, or no network loses so little.

    Example:
        >>> result = pruneport.ship("torchvision:resnet50", macs=0.5, out="r50")  # doctest: +SKIP
        >>> result.network, result.speedup, result.accuracy, result.report  # doctest: +SKIP
    """
    check_source(source)
    with macs_for_flops():
        named: dict[str, Any] = {
            "source": fspath(source),
            "out": str(out),
            "flops": macs,
            "params": params,
            "ratio": ratio,
            "latency": latency,
            "latency_ms": latency_ms,
        }
        return ship_config(options_from(ShipConfig, "ship", {**options, **named}), progress, COMMAND)


def check_source(source: object) -> None:
    """Raise where the source is no string or folder, and say how a network in memory is shipped."""
    if not isinstance(source, str | PathLike):
        raise SourceError(
            f"the source is a {type(source).__name__}; expected a string such as 'torchvision:resnet50'. A network in "
            "memory: pruneport.prune(network, …).export(folder).verify().bench()."
        )
