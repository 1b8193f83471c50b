"""Statistics of latency samples: percentiles, and how sure a speed-up is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pruneport.arrays import FloatArray
from pruneport.bench.latency.records import Latency, Speedup
from pruneport.errors import InputError

__all__ = ["paired_speedup", "summarise"]

_DRAWN_AT_ONCE = 2**20  # samples; bounds the memory of many rounds, and changes no result


def summarise(samples_ms: Sequence[float], batch: int = 1) -> Latency:
    """Summarise the samples; percentiles interpolate linearly (numpy's default, Hyndman and Fan's type 7).

    Args:
        samples_ms: latencies in milliseconds, at least one.
        batch: images of one run.

    Raises:
        InputError: there are no samples.

    Example:
        >>> summarise([1.0, 2.0, 3.0]).p50_ms
        2.0
    """
    if not samples_ms:
        raise InputError("No latencies to summarise: expected at least one sample.")
    p50_ms, p90_ms, p99_ms = np.percentile(samples_ms, [50, 90, 99]).tolist()
    return Latency(
        samples_ms=tuple(samples_ms),
        p50_ms=p50_ms,
        p90_ms=p90_ms,
        p99_ms=p99_ms,
        mean_ms=float(np.mean(samples_ms)),
        images_per_s=batch / (p50_ms / 1000),
    )


def paired_speedup(
    dense_ms: Sequence[float],
    pruned_ms: Sequence[float],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    block: int = 1,
) -> Speedup:
    """Ratio of medians, dense over pruned, with a percentile bootstrap interval over the pairs.

    Round ``i`` timed both networks one right after the other, so what slows the machine for a while slows
    both. Drawing whole rounds keeps that: each resample draws n rounds with replacement and computes

        median(dense_ms[drawn]) / median(pruned_ms[drawn])

    and the interval runs from the (1 - confidence) / 2 to the (1 + confidence) / 2 quantile of these ratios
    (B. Efron and R. Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3, whose advice for an
    interval is at least 1000 resamples).

    Args:
        dense_ms: latencies of the dense network, in milliseconds, in the order of the rounds.
        pruned_ms: latencies of the pruned network in the same rounds.
        confidence: level of the interval, inside (0, 1).
        resamples: bootstrap resamples.
        seed: seed of the generator; the same samples give the same interval.
        block: how many samples of a network are of one round; they are drawn together, since runs that follow each
            other are alike.

    Raises:
        InputError: the samples are not of at least two rounds that timed both networks, or the level is not inside
            (0, 1).

    Example:
        >>> paired_speedup([4.0, 4.0, 4.0], [2.0, 2.0, 2.0]).ratio
        2.0
    """
    from scipy import stats  # slow to import

    rounds = len(dense_ms) // block
    if len(dense_ms) != len(pruned_ms) or len(dense_ms) != rounds * block or rounds < 2:
        raise InputError(
            f"A speed-up needs at least 2 rounds that timed both networks{f' {block} times' if block > 1 else ''}; "
            f"got {len(dense_ms)} dense and {len(pruned_ms)} pruned samples."
        )
    if not 0 < confidence < 1:
        raise InputError(f"The confidence must be inside (0, 1), for example 0.95; got {confidence}.")
    dense, pruned = (np.asarray(samples).reshape(rounds, block) for samples in (dense_ms, pruned_ms))

    def ratio(drawn: NDArray[np.intp], axis: int = -1) -> FloatArray:
        """Of the medians over all samples of the rounds that were drawn, (..., rounds)."""
        sides = (side[drawn].reshape(*drawn.shape[:-1], -1) for side in (dense, pruned))
        over, under = (np.median(side, axis=-1) for side in sides)
        return np.asarray(over / under)

    interval = stats.bootstrap(
        (np.arange(rounds),),
        ratio,
        vectorized=True,
        method="percentile",
        n_resamples=resamples,
        confidence_level=confidence,
        batch=max(1, _DRAWN_AT_ONCE // len(dense_ms)),
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Speedup(
        ratio=float(ratio(np.arange(rounds))),
        low=float(interval.low),
        high=float(interval.high),
        confidence=confidence,
    )
