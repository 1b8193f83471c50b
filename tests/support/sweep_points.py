"""Sweeps made of figures, without any network."""

from __future__ import annotations

from collections.abc import Sequence

from pruneport.bench.latency.records import Speedup
from pruneport.bench.sweep.picks import best_within, pareto_front
from pruneport.bench.sweep.records import Figures, Limit, Pick, Point, PointLatency, Size, Sweep
from pruneport.bench.sweep.words import remark_on_pick, said_of_pick
from pruneport.export.accuracy import Accuracy

IMAGES = 1000


def make_point(
    kept: float, speed: float | None, lost: int = 0, *, searched: bool = False, busy: bool = False, error: str = ""
) -> Point:
    """A network that is so many times as fast and gets so many of 1000 images wrong that dense gets right."""
    figures = None
    if speed is not None:
        accuracy = Accuracy(
            images=IMAGES,
            folder="photos",
            dense_torch=0.9,
            pruned_torch=0.9 - lost / IMAGES,
            pruned_onnx=0.9 - lost / IMAGES,
            only_dense=lost,
            only_pruned=0,
        )
        figures = Figures(
            dense=Size(macs=1_000_000, params=10_000, bytes=40_000),
            pruned=Size(macs=int(1e6 * kept), params=int(1e4 * kept), bytes=int(4e4 * kept)),
            latencies=tuple(
                PointLatency(
                    batch=batch,
                    dense_ms=10.0 * batch,
                    pruned_ms=10.0 * batch / speed,
                    speedup=Speedup(ratio=speed, low=speed - 0.05, high=speed + 0.05, confidence=0.95),
                )
                for batch in (1, 8)
            ),
            accuracy=accuracy,
            agreement=None,
            busy=busy,
            warnings=(),
        )
    return Point(name=f"flops-{kept:g}", target="flops", value=kept, searched=searched, figures=figures, error=error)


def make_sweep(points: Sequence[Point], *limits: Limit, trained: bool = True) -> Sweep:
    """A sweep of points, with a pick for each limit."""
    picks = []
    for limit in limits:
        best = best_within(points, limit)
        picks.append(
            Pick(
                limit=limit,
                point=best and best.name,
                said=said_of_pick(points, limit, best),
                remark=remark_on_pick(points, limit, best),
            )
        )
    return Sweep(
        created="2026-11-27T09:00:00+00:00",
        source="torchvision:resnet50",
        trained=trained,
        identity={
            "target": "flops",
            "round_to": 8,
            "images": "/home/me/secret/photos",
            "source": {"spec": "torchvision:resnet50"},
        },
        points=tuple(points),
        front=pareto_front(points),
        picks=tuple(picks),
    )
