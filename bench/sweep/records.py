"""What a sweep found: the content of sweep.json, typed, and the schema by which it is read."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pruneport.bench.latency.records import Speedup
from pruneport.compress.surgery.plan import Plan
from pruneport.documents import Json, fit_document, load_document
from pruneport.export.accuracy import Accuracy, Agreement
from pruneport.export.bundle.bundle import DATA, DENSE_ONNX, MODEL_ONNX
from pruneport.export.card.verdict import load_warnings, warnings_for

__all__ = ["Figures", "Limit", "Pick", "Point", "PointLatency", "RuleName", "Size", "Sweep", "figures_of", "read_sweep"]

RuleName = Literal["max_drop", "min_speedup"]


@dataclass(frozen=True, kw_only=True)
class Size:
    """What a network costs: multiply-accumulates, parameters, and bytes of its ONNX file."""

    macs: int
    params: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class PointLatency:
    """Median latencies at one batch size, and how many times as fast as the dense network it is."""

    batch: int
    dense_ms: float
    pruned_ms: float
    speedup: Speedup


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was measured of one pruned network, dense and pruned in the same minutes.

    Attributes:
        dense: Cost of the dense network.
        pruned: Cost of the pruned one.
        latencies: By batch size, in rising order.
        accuracy: On labelled images; None where there were none.
        agreement: On images, labelled or not.
        busy: Whether others used the machine when it was timed.
        warnings: What else a reader must know.
    """

    dense: Size
    pruned: Size
    latencies: tuple[PointLatency, ...]
    accuracy: Accuracy | None
    agreement: Agreement | None
    busy: bool
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One target, and what became of it.

    Attributes:
        name: Of its bundle's folder.
        target: ``flops``, ``params``, ``ratio`` or ``latency``.
        value: Of the target.
        searched: Whether it was found by a search; the user asked for the others.
        figures: What was measured; None where there is no such network.
        error: Why there is none, or what is wrong with it; empty where nothing is.
    """

    name: str
    target: str
    value: float
    searched: bool
    figures: Figures | None
    error: str = ""

    @property
    def fault(self) -> str:
        """What is wrong with a network, or why there is none that was asked for; a search may try what is not there."""
        return self.error if self.figures is not None or not self.searched else ""

    @property
    def kept(self) -> float:
        """How much is kept by the target, of whatever it counts: 1 is dense."""
        return 1 - self.value if self.target == "ratio" else self.value


@dataclass(frozen=True, kw_only=True)
class Limit:
    """What a network must hold to be picked: the most points of top-1 to lose, or the least speed-up."""

    rule: RuleName
    value: float


@dataclass(frozen=True, kw_only=True)
class Pick:
    """The best network within a limit: the name of its point, no name where there is none; and that in words."""

    limit: Limit
    point: str | None
    said: str
    remark: str = ""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What sweep.json holds.

    Attributes:
        created: When it was written, in ISO format.
        source: Of the dense network.
        trained: Whether its weights are.
        identity: Everything that the figures depend on but the targets; a sweep goes on only with the same.
        points: From the least to the most that goes.
        front: Names of the points that no other, nor the dense network, beats in both accuracy and latency.
        picks: One for each limit.
    """

    format_version: int = 1
    created: str
    source: str
    trained: bool
    identity: dict[str, Any]
    points: tuple[Point, ...]
    front: tuple[str, ...]
    picks: tuple[Pick, ...]

    def to_dict(self) -> dict[str, Any]:
        """The content of sweep.json."""
        return asdict(self)


def figures_of(plan: Plan, verified: Json, measured: Json) -> Figures:
    """Gather a bundle's figures.

    Args:
        plan: Its plan.
        verified: What its verify.json holds.
        measured: What its bench.json holds.
    """
    files = verified["files"]
    before, after = (files[name] + files.get(name + DATA, 0) for name in (DENSE_ONNX, MODEL_ONNX))
    accuracy, agreement = verified["accuracy"], verified["agreement"]
    return Figures(
        dense=Size(macs=plan.dense.macs, params=plan.dense.params, bytes=before),
        pruned=Size(macs=plan.pruned.macs, params=plan.pruned.params, bytes=after),
        latencies=tuple(
            PointLatency(
                batch=entry["batch"],
                dense_ms=entry["dense"]["p50_ms"],
                pruned_ms=entry["pruned"]["p50_ms"],
                speedup=Speedup(**entry["speedup"]),
            )
            for entry in sorted(measured["batches"], key=lambda entry: int(entry["batch"]))
        ),
        accuracy=Accuracy(**accuracy) if accuracy else None,
        agreement=Agreement(**agreement) if agreement else None,
        busy=bool(load_warnings(measured)),
        warnings=tuple(warnings_for(json.loads(plan.to_json()), verified, None)),
    )


def read_sweep(content: bytes, name: str, advice: str) -> Sweep:
    """Read sweep.json.

    Args:
        content: JSON.
        name: What it should be, for messages (see ``load_document``).
        advice: What to do where it is not.

    Raises:
        BundleError: It does not fit the schema, or is of a newer format.
    """
    return fit_document(load_document(content, (1,), name, advice), Sweep, name, advice)
