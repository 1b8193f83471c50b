"""One run on the clock, and one network against the dense one, run by run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from pruneport.bench.latency.sessions import BoundRun, open_session
from pruneport.bench.latency.stats import paired_speedup
from pruneport.bench.latency.timed_form import TimedForm
from pruneport.bench.options import RuntimeOptions, TimedPrecision
from pruneport.errors import ProviderError

__all__ = [
    "SEED",
    "ClockName",
    "DenseTimer",
    "Elapsed",
    "TimedShare",
    "clock_of",
    "open_run",
    "time_run",
]

SEED = 0
"""Of random inputs, and of what is drawn from timings."""

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
    """A session with random inputs bound, after its warm-up runs.

    Raises:
        ModelError: The network cannot be opened.
        ProviderError: The provider is not there, or does not run it.
    """
    session = open_session(network, options, batch=batch)
    run = session.bind(*session.inputs.drawn(batch, SEED))
    for _ in range(options.warmup):
        time_run(run)
    return run


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

    def time(self, network: Path, rounds: int) -> TimedShare:
        """Time a network, by its fp32 file, that takes the same images.

        Raises:
            ExportError: It cannot be made in the precision.
            ModelError: It cannot be opened.
            ProviderError: It does not run.
        """
        other = open_run(self._form(network), self.options, self.batch)
        samples: tuple[list[Elapsed], list[Elapsed]] = ([], [])
        for number in range(rounds):
            for place in (0, 1) if number % 2 == 0 else (1, 0):
                samples[place].append(time_run((self._dense, other)[place]))
        dense_ms, other_ms = ([sample.by(self.clock) for sample in side] for side in samples)
        speedup = paired_speedup(dense_ms, other_ms, seed=SEED)
        return TimedShare(
            share=1 / speedup.ratio,
            low=1 / speedup.high,
            high=1 / speedup.low,
            dense_ms=float(np.median(dense_ms)),
            wall_share=_wall(samples[1]) / _wall(samples[0]),
            clock=self.clock,
            rounds=rounds,
        )


def _wall(samples: Sequence[Elapsed]) -> float:
    return float(np.median([sample.wall_ms for sample in samples]))
