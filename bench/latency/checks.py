"""What is checked before networks are timed, and of the speed-up when they were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from pruneport.bench.latency.onnx_input import read_inputs
from pruneport.bench.latency.records import Measured
from pruneport.bench.options import BenchOptions, ProviderName
from pruneport.errors import InputError, ModelError, SpeedupError
from pruneport.models.files import not_a_file

__all__ = ["check_files", "check_options", "check_required"]

_TOO_MANY = 2**31  # an ONNX file's dimensions are of 63 bits, and no memory holds as much
_MOST_THREADS = 1024  # more than any machine has cores; ONNX Runtime takes memory for each without a limit


def check_options(options: BenchOptions, fixed: int | None = None) -> None:
    """Check what needs no files.

    Args:
        options: What will be timed, and how.
        fixed: The one batch size that the networks will take, or None.

    Raises:
        InputError: An option is out of range, or a batch size not the fixed one; all faults are named at once.
    """
    faults = _option_faults(options)
    if fixed is not None and set(_at(fixed, options).batches) != {fixed}:
        faults.append(
            f"batches must be {fixed} alone, for which the networks are exported; got {_listed(options.batches)}"
        )
    _refuse(faults)


def check_files(files: Mapping[str, Path], options: BenchOptions) -> BenchOptions:
    """Check everything that can be checked before the first session is opened.

    Args:
        files: The ONNX files by name; all must take what ``dense`` takes.
        options: What is asked for.

    Returns:
        What is to be timed.

    Raises:
        InputError: An option is out of range, or a file is missing; all faults are named at once.
        ModelError: A network cannot take one of the batch sizes, or two take different inputs.
    """
    faults = [f"{name}: {path} {fault}" for name, path in files.items() if (fault := not_a_file(path))]
    _refuse(faults + _option_faults(options))
    inputs = {name: read_inputs(path) for name, path in files.items()}
    first = inputs["dense"]
    for name, taken in inputs.items():
        if not first.takes_as(taken):
            raise ModelError(
                f"Dense and {name} must take the same inputs to be compared; dense takes {first}, {name} {taken}."
            )
    if isinstance(first.batch, int):
        options = _at(first.batch, options)
    fixed = [
        f"{name} ({path}) has the fixed batch {inputs[name].batch}"
        for name, path in files.items()
        if isinstance(inputs[name].batch, int) and set(options.batches) != {inputs[name].batch}
    ]
    if fixed:
        raise ModelError(
            f"Batch sizes {_listed(options.batches)} were asked for, but {' and '.join(fixed)}. "
            "Export with a dynamic batch, or ask for the fixed one only."
        )
    return options


def _refuse(faults: Sequence[str]) -> None:
    if faults:
        raise InputError(f"The networks cannot be timed. {'. '.join(faults)}.")


def _at(fixed: int, options: BenchOptions) -> BenchOptions:
    """The options for networks of a fixed batch, which stands in for the batch sizes that nobody chose."""
    return replace(options, batches=(fixed,)) if options.batches == BenchOptions.batches else options


def _option_faults(options: BenchOptions) -> list[str]:
    """All that is wrong with the options."""
    rules = {
        f"provider must be one of {', '.join(get_args(ProviderName))}; got '{options.provider}'": (
            options.provider in get_args(ProviderName)
        ),
        f"batches must be different sizes of at least 1; got {_listed(options.batches) or 'none'}": (
            len(options.batches) > 0 and min(options.batches) >= 1 and len(set(options.batches)) == len(options.batches)
        ),
        f"batches must be below {_TOO_MANY}; got {_listed(options.batches)}": max(options.batches, default=0)
        < _TOO_MANY,
        f"repeats must be at least 2; got {options.repeats}": options.repeats >= 2,
        f"warmup must be at least 1, since the first run prepares memory and kernels; got {options.warmup}": (
            options.warmup >= 1
        ),
        f"threads must be from 1 to {_MOST_THREADS}; got {options.threads}": (
            options.threads is None or 1 <= options.threads <= _MOST_THREADS
        ),
        f"device must be at least 0; got {options.device}": options.device >= 0,
        f"device is a GPU's index, and the provider is 'cpu'; got {options.device}": (
            options.provider != "cpu" or options.device <= 0
        ),
        f"confidence must be inside (0, 1), such as 0.95; got {options.confidence}": 0 < options.confidence < 1,
        f"require_speedup must be above 0; got {options.require_speedup}": (
            options.require_speedup is None or options.require_speedup > 0
        ),
        f"tf32 needs the provider 'cuda' or 'tensorrt'; got '{options.provider}'": (
            options.provider != "cpu" or not options.tf32
        ),
        f"nhwc, fuse_conv_bias and small_workspace belong to the provider 'cuda'; got '{options.provider}'": (
            options.provider == "cuda" or not (options.nhwc or options.fuse_conv_bias or options.small_workspace)
        ),
        f"cuda_graph needs the provider 'cuda' or 'tensorrt'; got '{options.provider}'": (
            options.provider != "cpu" or not options.cuda_graph
        ),
    }
    return [fault for fault, holds in rules.items() if not holds]


def _listed(batches: tuple[int, ...]) -> str:
    return " ".join(map(str, batches))


def check_required(bench: Measured, require: float) -> None:
    """Fail where the speed-up is not surely as large as required.

    Args:
        bench: what :func:`measure` returned.
        require: smallest accepted lower end of the speed-up's interval.

    Raises:
        SpeedupError: the lower end is below ``require``; every such batch size is named.
    """
    short = [
        f"batch {entry.batch}: {speedup.ratio:.3f}x, {speedup.confidence:.0%} interval "
        f"{speedup.low:.3f} to {speedup.high:.3f}"
        for entry in bench.batches
        if not (speedup := entry.speedup).low >= require
    ]
    if short:
        raise SpeedupError(
            f"A speed-up of at least {require:g}x on {bench.provider} was required and not measured at "
            f"{'; '.join(short)}. Prune further, or repeat more often to narrow the interval."
        )
