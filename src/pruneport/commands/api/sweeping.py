"""sweep, by keyword arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

from pruneport.commands.api.bundles import COMMAND
from pruneport.commands.api.configured import macs_for_flops, options_from
from pruneport.commands.api.keywords import PathName, SweepKeywords
from pruneport.commands.api.shipping import check_source
from pruneport.commands.configs import SweepConfig
from pruneport.commands.study_results import SweepResult
from pruneport.commands.sweeping.sweep import sweep as sweep_config
from pruneport.progress import Progress, silent

__all__ = ["sweep"]


def sweep(
    source: str,
    *,
    out: PathName,
    macs: Sequence[float] = (),
    params: Sequence[float] = (),
    ratio: Sequence[float] = (),
    latency: Sequence[float] = (),
    max_drop: float | None = None,
    min_speedup: float | None = None,
    progress: Progress = silent,
    **options: Unpack[SweepKeywords],
) -> SweepResult:
    """Prune to several targets, ship each as a bundle, and report the trade-off on one page.

    A sweep that is there goes on: what was finished is not done again.

    Args:
        source: torchvision:NAME, timm:NAME, pruneport:NAME, package.module:factory or path/to/file.py:factory.
        out: The sweep's folder.
        macs: Keep these shares of the compute, each in (0, 1). Exactly one of ``macs``, ``params``, ``ratio`` and
            ``latency`` is given.
        params: Keep these shares of the parameters.
        ratio: Remove these shares of the filters.
        latency: Keep these shares of the latency at ``latency_batch``, as timed.
        max_drop: Pick the fastest network that loses no more points of top-1; between the points it is searched for.
        min_speedup: Pick the most accurate network that is as fast; between the points it is searched for.
        progress: Told what is being done.
        **options: Fields of ``SweepConfig``, such as ``checkpoint``, ``weights``, ``calibration``, ``images``.

    Returns:
        The ``points`` with their figures, the ``report``, and what was picked: ``result.bundle("max_drop")``. Points
        that could not be reached say why; ``result.check()`` raises where there are any.

    Raises:
        InputError: Something that was given cannot be used, or no point can be reached.

    Example:
        >>> result = pruneport.sweep("torchvision:resnet50", macs=[0.9, 0.75, 0.6], out="r50")  # doctest: +SKIP
        >>> [(point.value, point.figures.latencies[0].speedup.ratio) for point in result.points]  # doctest: +SKIP
    """
    check_source(source)
    with macs_for_flops():
        limits: dict[str, Any] = {"max_drop": max_drop, "min_speedup": min_speedup}
        named: dict[str, Any] = {"source": source, "out": str(out), "flops": macs, "params": params, "ratio": ratio}
        named["latency"] = latency
        config = options_from(SweepConfig, "sweep", {**options, **limits, **named})
        return sweep_config(config, progress, COMMAND)
