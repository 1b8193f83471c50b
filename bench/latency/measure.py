"""Times a dense and a pruned ONNX network against each other, fairly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pruneport.bench.devices import (
    OthersWatch,
    ThrottleWatch,
    cpu_in_use_by_others,
    describe_device,
    latency_versions,
    sample_device,
)
from pruneport.bench.gpu_state import gpu_library_versions
from pruneport.bench.latency.checks import check_files, check_options
from pruneport.bench.latency.probe import probe
from pruneport.bench.latency.records import BatchTimes, Measured, PrecisionTimes, Speedup
from pruneport.bench.latency.sessions import open_session
from pruneport.bench.latency.stats import paired_speedup, summarise
from pruneport.bench.latency.timer import MEASURED_S, SEED, WARM_UP_S, take_turns, warm_up
from pruneport.bench.options import BenchOptions
from pruneport.export.options import OnnxPrecision
from pruneport.progress import Progress, Step, silent

__all__ = ["measure", "preflight"]

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
    options = check_files(files, options)
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
    check_options(options, fixed)
    probe(options)
    describe_device(options.provider, options.device)


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

    def times_as_fast(pruned: str, dense: str) -> Speedup:
        """As one file in the place of another."""
        return paired_speedup(
            samples_ms[dense],
            samples_ms[pruned],
            confidence=options.confidence,
            resamples=_RESAMPLES,
            seed=SEED,
            block=turns.block,
        )

    speedup = times_as_fast("pruned", "dense")
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
                dense_speedup=times_as_fast(f"dense {precision}", "dense"),
                pruned_speedup=times_as_fast(f"pruned {precision}", "dense"),
                speedup=times_as_fast(f"pruned {precision}", f"dense {precision}"),
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
