"""Times a dense and a pruned ONNX network against each other, fairly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

from pruneport.bench.devices import (
    OthersWatch,
    ThrottleWatch,
    cpu_in_use_by_others,
    describe_device,
    latency_versions,
    sample_device,
)
from pruneport.bench.gpu_state import gpu_library_versions
from pruneport.bench.latency.onnx_input import read_inputs
from pruneport.bench.latency.probe import probe
from pruneport.bench.latency.records import BatchTimes, Measured, PrecisionTimes
from pruneport.bench.latency.sessions import open_session
from pruneport.bench.latency.stats import paired_speedup, summarise
from pruneport.bench.latency.timer import MEASURED_S, SEED, WARM_UP_S, take_turns, warm_up
from pruneport.bench.options import BenchOptions, ProviderName
from pruneport.errors import InputError, ModelError, SpeedupError
from pruneport.export.options import OnnxPrecision
from pruneport.models.files import not_a_file
from pruneport.progress import Progress, Step, silent

__all__ = ["check_required", "measure", "preflight"]

_RESAMPLES = 2000
_ORDER_OF_TWO = "dense first in rounds 0, 2, ...; pruned first in rounds 1, 3, ..."
_ORDER = "dense, pruned, then each other precision in rounds 0, 2, ...; the reverse in rounds 1, 3, ..."
Files = Mapping[OnnxPrecision, tuple[Path, Path]]
"""The dense and the pruned file, by precision."""
_METHOD = (
    "Both networks are timed in one process, one after the other in each round with the first place "
    "alternating, after warm-up runs at the same batch size, with inputs and outputs bound in the provider's "
    "memory and synchronised; the speed-up is the ratio of the median latencies, dense over pruned, with a "
    "percentile bootstrap interval over the rounds."
)
_BLOCKS = (
    " On a GPU each network runs a block of times in its turn, of which the first is not counted, since it brings back "
    "what the other network took from the cache: the times are those of a network that runs alone, again and again. "
    "The warm-up takes at least 1 s and the rounds at least 3 s, for the clocks to rise; the interval draws whole "
    "rounds."
)


def measure(
    dense: Path,
    pruned: Path,
    options: BenchOptions,
    progress: Progress = silent,
    others: Files | None = None,
) -> Measured:
    """Time both networks at every batch size, interleaved; in other precisions in the same rounds.

    Args:
        dense: ONNX file of the dense network.
        pruned: ONNX file of the pruned network; it takes the same inputs.
        options: provider, batch sizes, runs and level of the interval; networks of a fixed batch are timed at that
            where no other batch sizes were asked for.
        progress: called with one line for each step of the work.
        others: the dense and the pruned file in each other precision that is timed.

    Returns:
        The content of bench.json: for each batch size the latencies in milliseconds, ``images_per_s`` (the
        batch over the median latency), the speed-up with its interval and, as ``device``, load, clocks and power as
        the timed rounds left them and what others used of the cores meanwhile, None where the rounds were too short to
        tell; and everything they depend on. The whole ``device`` says the same of the time
        before any session, with the share of the cores that others used then, and ``at_end`` of the last batch size.

    Raises:
        InputError: an option is out of range, or a file is missing; all faults are named at once.
        ModelError: a network cannot take one of the batch sizes, or the two take different inputs.
        ProviderError: the provider is not there, or would not run every node.
    """
    others = others or {}
    files = {"dense": dense, "pruned": pruned}
    for precision, (one, other) in others.items():
        files |= {f"dense {precision}": one, f"pruned {precision}": other}
    options = _validate(files, options)
    progress("watching what else this machine does")
    in_use = {"cpu_in_use_by_others": cpu_in_use_by_others()}
    device = describe_device(options.provider, options.device) | in_use
    batches: list[_Timed] = []
    for number, batch in enumerate(options.batches):
        opening = "both networks" if len(files) == 2 else f"{len(files)} files"
        progress(Step(f"batch {batch}: opening {opening} on {options.provider}", number, len(options.batches)))
        batches.append(_measure_batch(files, batch, options, progress, tuple(others)))
    last, on_gpu = batches[-1], options.provider != "cpu"
    return Measured(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        provider=options.provider,
        device=device | {"at_end": last.times.device},
        settings=last.settings
        | {
            "nodes_per_provider": last.placement,
            "warmup": options.warmup,
            "repeats": options.repeats,
            **(_least_times(options.batches, batches) if on_gpu else {}),
            "order": _ORDER if others else _ORDER_OF_TWO,
            "input_seed": SEED,
            "bootstrap_resamples": _RESAMPLES,
            "bootstrap_seed": SEED,
        },
        versions={**latency_versions(), **(gpu_library_versions() if on_gpu else {})},
        method=_METHOD + (_BLOCKS if on_gpu else ""),
        batches=tuple(entry.times for entry in batches),
    )


def preflight(options: BenchOptions, fixed: int | None = None) -> None:
    """Find out before any long work whether the options hold and the provider runs, on one convolution.

    Args:
        options: what will be timed, and how.
        fixed: the one batch size that the networks will take, or None.

    Raises:
        InputError: an option is out of range, or a batch size not the fixed one; all faults are named at once.
        ProviderError: the provider is not there, does not start or does not compute.
    """
    faults = _option_faults(options)
    if fixed is not None and set(_at(fixed, options).batches) != {fixed}:
        faults.append(
            f"batches must be {fixed} alone, for which the networks are exported; got {_listed(options.batches)}"
        )
    if faults:
        raise InputError(f"The networks cannot be timed. {'. '.join(faults)}.")
    probe(options)
    describe_device(options.provider, options.device)


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


def _validate(files: Mapping[str, Path], options: BenchOptions) -> BenchOptions:
    """Check everything that can be checked before the first session is opened; return what is to be timed."""
    faults = [f"{name}: {path} {fault}" for name, path in files.items() if (fault := not_a_file(path))]
    faults += _option_faults(options)
    if faults:
        raise InputError("The networks cannot be timed. " + ". ".join(faults) + ".")
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
        f"repeats must be at least 2; got {options.repeats}": options.repeats >= 2,
        f"warmup must be at least 1, since the first run prepares memory and kernels; got {options.warmup}": (
            options.warmup >= 1
        ),
        f"threads must be at least 1; got {options.threads}": options.threads is None or options.threads >= 1,
        f"device must be at least 0; got {options.device}": options.device >= 0,
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


@dataclass(frozen=True, kw_only=True)
class _Timed:
    """One batch size, and what the sessions of it were set to; the sessions are gone, and their memory with them."""

    times: BatchTimes
    settings: dict[str, Any]
    placement: dict[str, dict[str, int]]
    rounds: int
    block: int


def _least_times(sizes: Sequence[int], batches: Sequence[_Timed]) -> dict[str, Any]:
    """What the record says of time on a GPU, where the number of runs follows from it."""
    return {
        "warmup_least_s": WARM_UP_S,
        "measured_least_s": MEASURED_S,
        "rounds": {str(size): entry.rounds for size, entry in zip(sizes, batches, strict=True)},
        "runs_per_round": {str(size): entry.block for size, entry in zip(sizes, batches, strict=True)},
    }


def _measure_batch(
    files: Mapping[str, Path],
    batch: int,
    options: BenchOptions,
    progress: Progress,
    others: tuple[OnnxPrecision, ...],
) -> _Timed:
    """Open all networks at one batch size, time them and let them go."""
    sessions = {name: open_session(path, options, batch=batch) for name, path in files.items()}
    values = sessions["dense"].inputs.drawn(batch, SEED)
    runs = {name: session.bind(*values) for name, session in sessions.items()}
    progress(f"batch {batch}: {options.warmup} warm-up runs of each network")
    warm_up(runs.values(), options, WARM_UP_S)
    progress(f"batch {batch}: {options.repeats} timed rounds")
    watch, throttle = OthersWatch(), ThrottleWatch(options.provider, options.device)
    turns = take_turns(runs, options.repeats, options, throttle.look, MEASURED_S)
    # Before the clocks fall while statistics are computed.
    device = sample_device(options.provider, options.device) | throttle.reasons()
    device["cpu_in_use_by_others"] = watch.share()
    samples_ms = {name: [sample.wall_ms for sample in samples] for name, samples in turns.samples.items()}
    times = {name: summarise(samples, batch) for name, samples in samples_ms.items()}
    speedups = {
        name: paired_speedup(
            samples_ms["dense"],
            samples,
            confidence=options.confidence,
            resamples=_RESAMPLES,
            seed=SEED,
            block=turns.block,
        )
        for name, samples in samples_ms.items()
        if name != "dense"
    }
    speedup = speedups["pruned"]
    progress(f"batch {batch}: {speedup.ratio:.2f}x ({speedup.low:.2f} to {speedup.high:.2f})")
    measured = BatchTimes(
        batch=batch,
        dense=times["dense"],
        pruned=times["pruned"],
        speedup=speedup,
        device=device,
        precisions=tuple(
            PrecisionTimes(
                precision=precision,
                dense=times[f"dense {precision}"],
                pruned=times[f"pruned {precision}"],
                dense_speedup=speedups[f"dense {precision}"],
                pruned_speedup=speedups[f"pruned {precision}"],
            )
            for precision in others
        ),
    )
    return _Timed(
        times=measured,
        settings=sessions["dense"].settings,
        placement={name: session.placement for name, session in sessions.items()},
        rounds=len(samples_ms["dense"]) // turns.block,
        block=turns.block,
    )
