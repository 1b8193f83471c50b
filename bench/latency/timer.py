"""One run on the clock, and networks in turns: run by run on the CPU, block by block on a GPU."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from pruneport.bench.latency.bound import BoundRun
from pruneport.bench.latency.sessions import open_session
from pruneport.bench.latency.stats import paired_speedup
from pruneport.bench.latency.timed_form import TimedForm
from pruneport.bench.options import RuntimeOptions, TimedPrecision
from pruneport.errors import ProviderError

__all__ = [
    "MEASURED_S",
    "SEED",
    "WARM_UP_S",
    "ClockName",
    "DenseTimer",
    "Elapsed",
    "TimedShare",
    "Turns",
    "clock_of",
    "open_run",
    "take_turns",
    "time_run",
    "warm_up",
]

SEED = 0
"""Of random inputs, and of what is drawn from timings."""

WARM_UP_S = 1.0
"""Least time of the warm-up on a GPU: an idle H200 starts at 345 of its 1980 MHz."""
MEASURED_S = 3.0
"""Least time of the timed rounds on a GPU."""
_QUICK_WARM_UP_S, _QUICK_MEASURED_S = 0.3, 0.8
_LEAST_BLOCK = 5

ClockName = Literal["wall", "thread-cpu"]
"""What the time of a run is: with one thread on the CPU, the time that the thread had a processor, which other
programs hardly change; else the time that passed."""


class Elapsed(NamedTuple):
    """What one run took by both clocks, in ms."""

    wall_ms: float
    cpu_ms: float

    def by(self, clock: ClockName) -> float:
        """By one of them."""
        return self.wall_ms if clock == "wall" else self.cpu_ms


def time_run(run: BoundRun) -> Elapsed:
    """Run once.

    Raises:
        ProviderError: The run failed.
    """
    start_ns, start_cpu_ns = time.perf_counter_ns(), time.thread_time_ns()
    try:
        run.run()
    except Exception as error:  # ONNX Runtime's errors share no other base
        raise ProviderError(f"A timed run failed: {error}") from error
    cpu_ns, wall_ns = time.thread_time_ns() - start_cpu_ns, time.perf_counter_ns() - start_ns
    return Elapsed(wall_ms=wall_ns / 1e6, cpu_ms=cpu_ns / 1e6)


def clock_of(options: RuntimeOptions) -> ClockName:
    """Which clock tells most: with more than one thread, or on a GPU, a thread's own time says nothing."""
    return "thread-cpu" if options.provider == "cpu" and options.threads == 1 else "wall"


def open_run(network: Path, options: RuntimeOptions, batch: int) -> BoundRun:
    """A session with random inputs bound; it still has to be warmed up.

    Raises:
        ModelError: The network cannot be opened.
        ProviderError: The provider is not there, or does not run it.
    """
    session = open_session(network, options, batch=batch)
    return session.bind(*session.inputs.drawn(batch, SEED))


def warm_up(runs: Collection[BoundRun], options: RuntimeOptions, least_s: float = WARM_UP_S) -> None:
    """Run each ``warmup`` times, and on a GPU for some time in all; then see that CUDA graphs compute the networks.

    Args:
        runs: The networks.
        options: Where they run.
        least_s: That time, in s.

    Raises:
        ProviderError: A run failed, or a CUDA graph does not compute what it should.
    """
    start = time.monotonic()
    for run in runs:
        for _ in range(options.warmup):
            time_run(run)
    for run in runs:
        run.check_replay()
    while options.provider != "cpu" and time.monotonic() - start < least_s:
        for run in runs:
            time_run(run)


@dataclass(frozen=True, kw_only=True)
class Turns:
    """Networks timed in turns.

    Attributes:
        samples: Of each network, in the order of the rounds.
        block: How many of a network's samples are of one round.
    """

    samples: Mapping[str, Sequence[Elapsed]]
    block: int


def take_turns(
    runs: Mapping[str, BoundRun],
    rounds: int,
    options: RuntimeOptions,
    between: Callable[[], object] = lambda: None,
    least_s: float = MEASURED_S,
) -> Turns:
    """Time all in every round; the order is turned round each time, so that none is helped by it.

    On the CPU each network runs once in its turn. On a GPU it runs a block of times, of which the first does not count:
    it brings weights back into the cache that the other network took. Rounds go on there for ``least_s``.

    Args:
        runs: The networks, warmed up.
        rounds: The fewest.
        options: Where they run.
        between: Called after each round.
        least_s: Of all rounds together, on a GPU.

    Raises:
        ProviderError: A run failed.
    """
    on_gpu, block = options.provider != "cpu", 1
    if on_gpu:
        once_ms = sum(time_run(run).wall_ms for run in runs.values())
        block = max(_LEAST_BLOCK, math.ceil(least_s * 1000 / (rounds * once_ms)))
    samples: dict[str, list[Elapsed]] = {name: [] for name in runs}
    start, number = time.monotonic(), 0
    while number < rounds or (on_gpu and time.monotonic() - start < least_s):
        for name in runs if number % 2 == 0 else reversed(list(runs)):
            if on_gpu:
                time_run(runs[name])
            samples[name] += [time_run(runs[name]) for _ in range(block)]
        number += 1
        between()
    return Turns(samples=samples, block=block)


@dataclass(frozen=True, kw_only=True)
class TimedShare:
    """The latency of a network as a share of the dense one's, which ran in turns with it.

    Attributes:
        share: Ratio of the medians, by ``clock``.
        low: Lower end of its bootstrap interval of 95 %.
        high: Upper end.
        dense_ms: Median of the dense network, by ``clock``.
        wall_share: Ratio of the medians of the time that passed.
        clock: What was counted.
        rounds: How often both ran.
    """

    share: float
    low: float
    high: float
    dense_ms: float
    wall_share: float
    clock: ClockName
    rounds: int

    @property
    def ms(self) -> float:
        """Median of the network, by ``clock``."""
        return self.share * self.dense_ms

    @property
    def spread(self) -> float:
        """Half the width of the interval, as a share of ``share``."""
        return (self.high - self.low) / 2 / self.share


class DenseTimer:
    """Times networks in turns with the dense one, so that what slows the machine for a while slows both.

    Args:
        dense: ONNX file of the dense network.
        options: Where; ``threads=1`` on the CPU counts the thread's own time.
        batch: Images of a run.
        precision: In which both are timed.
    """

    def __init__(
        self, dense: Path, options: RuntimeOptions, batch: int, precision: TimedPrecision | None = None
    ) -> None:
        self.options, self.batch = options, batch
        self.clock = clock_of(options)
        self._form = TimedForm(options.provider, precision or "fp32")
        self._dense = open_run(self._form(dense), options, batch)
        warm_up([self._dense], options)

    def time(self, network: Path, rounds: int, *, quick: bool = False) -> TimedShare:
        """Time a network, by its fp32 file, that takes the same images.

        Args:
            network: Its file.
            rounds: The fewest.
            quick: On a GPU for a second and not for four: one of many networks, which a model is fitted to.

        Raises:
            ExportError: It cannot be made in the precision.
            ModelError: It cannot be opened.
            ProviderError: It does not run.
        """
        other = open_run(self._form(network), self.options, self.batch)
        warmed_s, measured_s = (_QUICK_WARM_UP_S, _QUICK_MEASURED_S) if quick else (WARM_UP_S, MEASURED_S)
        warm_up([other], self.options, warmed_s)
        turns = take_turns({"dense": self._dense, "other": other}, rounds, self.options, least_s=measured_s)
        dense, timed = turns.samples["dense"], turns.samples["other"]
        dense_ms, other_ms = ([sample.by(self.clock) for sample in side] for side in (dense, timed))
        speedup = paired_speedup(dense_ms, other_ms, seed=SEED, block=turns.block)
        return TimedShare(
            share=1 / speedup.ratio,
            low=1 / speedup.high,
            high=1 / speedup.low,
            dense_ms=float(np.median(dense_ms)),
            wall_share=_wall(timed) / _wall(dense),
            clock=self.clock,
            rounds=len(timed) // turns.block,
        )


def _wall(samples: Sequence[Elapsed]) -> float:
    return float(np.median([sample.wall_ms for sample in samples]))
