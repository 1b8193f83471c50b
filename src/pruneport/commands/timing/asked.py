"""What a latency target asks for, and what is checked of it before any work."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import TypeVar

from torch import nn

from pruneport.bench.options import BenchOptions, LatencyOptions, RuntimeOptions, TimedPrecision
from pruneport.commands.configs import ShipConfig, SweepConfig
from pruneport.commands.timing.measuring import check_place
from pruneport.commands.timing.tables import read_given
from pruneport.compress.allocation.cost_model import LATENCIES
from pruneport.compress.allocation.target import target_of
from pruneport.compress.options import LatencyTarget
from pruneport.errors import InputError, TargetError
from pruneport.export.options import ExportOptions
from pruneport.models.options import given_of, refuse_idle

__all__ = ["at_latency_batch", "check_latency", "is_latency", "refuse_latency", "timed_in"]

_RUNTIME = tuple(field.name for field in fields(RuntimeOptions))
_MEANING = tuple(field.name for field in fields(LatencyOptions) if field.name not in _RUNTIME)
"""What a latency target means, which is said of nothing else."""
_Shipped = TypeVar("_Shipped", ShipConfig, SweepConfig)


def is_latency(options: LatencyTarget) -> bool:
    """Whether the target is a latency."""
    return target_of(options)[0] in LATENCIES


def refuse_latency(target: str, options: LatencyOptions, bundle: object, original: nn.Module | None) -> None:
    """Refuse a latency target for a bundle that is compressed further where it cannot be timed against its original.

    Args:
        target: The target's name.
        options: Where the latency holds.
        bundle: What it is called in the message.
        original: The dense network that it came from, where that is at hand.

    Raises:
        TargetError: The target is a latency, and the original is not at hand, or timings of another network are given.
    """
    if target not in LATENCIES:
        return
    if options.latency_table is not None:
        raise TargetError(
            f"`latency_table` is of a dense network, and {bundle} is compressed further: how long it and its original "
            "take is timed here. Leave out `latency_table`, or start from the bundle's own source."
        )
    if original is None:
        raise TargetError(
            f"a latency target is a share of the dense network's latency, and the dense network of {bundle} cannot be "
            "had; say with `checkpoint` where its weights lie now, or give `flops`, `params` or `ratio`."
        )


def at_latency_batch(options: _Shipped) -> _Shipped:
    """The same where the finished file is timed at the latency target's batch size, too."""
    if options.latency_batch in options.batches or options.batch_size_fixed is not None:
        return options
    return replace(options, batches=tuple(sorted({*options.batches, options.latency_batch})))


def timed_in(options: LatencyOptions, form: ExportOptions) -> LatencyOptions:
    """The same with the precision in which the target holds; that of a table that is given is the table's."""
    if options.latency_precision is not None or options.latency_table is not None:
        return options
    precision: TimedPrecision = "int8" if "int8" in form.precisions else "fp32"
    if precision == "fp32" and "fp16" in form.precisions and options.provider != "cpu":
        precision = "fp16"
    return replace(options, latency_precision=precision)


def check_latency(options: LatencyOptions, form: ExportOptions, target: str) -> None:
    """Check what can be checked before any long work.

    Args:
        options: Where the latency holds.
        form: What the ONNX files are like.
        target: The target's name. Where it is no latency, nothing may say what one means.

    Raises:
        InputError: An option is out of range or has no meaning, or the table is of another place.
        ProviderError: The provider is not there or does not start.
    """
    times = isinstance(options, BenchOptions)  # whatever the target: the finished network
    if target not in LATENCIES:
        if given := given_of(options, _MEANING if times else (*_MEANING, *_RUNTIME)):
            raise InputError(
                f"{' and '.join(given)} without a latency as the target, which is `{target}`: give `latency` in its "
                f"place, or leave {' and '.join(given)} out."
            )
    elif options.latency_table is not None:
        read_given(options)
        why = "for timings that are made here, and `latency_table` brings them"
        refuse_idle(options, ["latency_cache"], why, "Leave out `latency_table`")
    else:
        _check_cache(options.latency_cache)
        check_place(timed_in(options, form), form)


def _check_cache(folder: Path | None) -> None:
    """Refuse what timings could not be kept in."""
    if folder is not None and not next(path for path in (folder, *folder.absolute().parents) if path.exists()).is_dir():
        raise InputError(f"`latency_cache` {folder} is a file, or lies below one; expected a folder, there or not yet.")
