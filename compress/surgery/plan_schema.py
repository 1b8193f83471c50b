"""The schema of plan.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal

import msgspec

from pruneport.compress.group_records import Axis, Cost, DroppedBranch, ScopeInFiles
from pruneport.compress.records import Calibrated, Earlier, Imitated, LatencyReached, Recovered, Request, Trained
from pruneport.documents import Count, Size
from pruneport.models.inputs import InputSpec
from pruneport.models.record import Preprocessing, Source

__all__ = ["MOST_INPUTS", "GroupEntry", "MemberEntry", "PlanDocument", "unknown_keys"]

MOST_INPUTS = 2**27  # numbers in one input image: 3 channels at 6688 by 6688


class MemberEntry(msgspec.Struct, forbid_unknown_fields=True):
    """Unit ``u`` occupies ``start + u * run … start + (u + 1) * run``, or every unit's ``positions`` are listed."""

    module: str
    axis: Axis
    size: Size
    start: Count | None = None
    run: Size | None = None
    positions: list[list[int]] | None = None

    def __post_init__(self) -> None:
        if self.positions is None and (self.start is None or self.run is None):
            raise ValueError("expected `start` and `run`, or `positions`")


class GroupEntry(msgspec.Struct, forbid_unknown_fields=True):
    """One group, with the keys of plan.json."""

    name: str
    scope: ScopeInFiles
    width: Size
    asked: float
    kept: list[int] | None
    reason: str
    macs: Count
    params: Count
    members: list[MemberEntry]
    heads: bool = False


class PlanDocument(msgspec.Struct, forbid_unknown_fields=True):
    """What plan.json holds, of formats 1 and 2."""

    format_version: int
    created: str
    libraries: dict[str, str]
    source: Source
    request: Request
    dense: Cost
    pruned: Cost
    groups: list[GroupEntry]
    note: str | None
    masked_error: float | None
    attributes: dict[str, dict[str, int | tuple[int, ...]]] = {}
    sizes: dict[str, dict[str, dict[int, Count]]] | None = None
    calibration: Calibrated | None = None
    recovery: Recovered | None = None
    training: Trained | Literal["outside"] | None = None
    earlier: tuple[Earlier, ...] = ()
    dense_onnx: Literal["original", "start"] = "original"
    latency: LatencyReached | None = None
    branches: tuple[DroppedBranch, ...] = ()

    def __post_init__(self) -> None:
        if "pruneport" not in self.libraries:
            raise ValueError("`libraries` does not say which pruneport made it")
        if not (self.dense.macs and self.dense.params):
            raise ValueError("the dense network costs nothing")
        if self.source.takes.entries > MOST_INPUTS:
            key = "input_shape" if self.source.inputs is None else "inputs"
            shape = self.source.inputs or self.source.input_shape
            raise ValueError(f"an input of shape {str(shape)[:200]} is too large - at `$.source.{key}`")
        if self.dense_onnx == "start" and not self.earlier:
            raise ValueError("`dense_onnx` is the network that was compressed further, and there is none in `earlier`")
        if not all(step.pruned.macs and step.pruned.params for step in self.earlier):
            raise ValueError("a network in `earlier` costs nothing")
        for reached in (self.latency, *(step.latency for step in self.earlier)):
            if reached is not None and reached.chosen >= len(reached.rounds):
                raise ValueError("`latency` chose a round that is not there")
        for done in (self.recovery, *(step.recovery for step in self.earlier)):
            if done is not None and done.heldout:
                measured = (done.heldout_error_before, done.heldout_error_after)
                shares = (done.heldout_agreement_before, done.heldout_agreement)
                if None in measured or (None in shares and set(shares) != {None}):
                    raise ValueError("`recovery` does not say what was measured on the inputs that were held out")


def unknown_keys(loaded: Mapping[str, Any]) -> list[str]:
    """Keys of a plan's parts that the schema does not have; those of groups it refuses itself."""
    kinds: dict[str, type[Any]] = {
        "source": Source,
        "source.preprocessing": Preprocessing,
        "source.inputs": InputSpec,
        "request": Request,
        "dense": Cost,
        "pruned": Cost,
        "calibration": Calibrated,
        "recovery": Recovered,
        "recovery.imitation": Imitated,
        "training": Trained,
        "latency": LatencyReached,
    }
    kinds |= {f"branches.{number}": DroppedBranch for number in range(len(loaded.get("branches") or ()))}
    parts = ("request", "pruned", "calibration", "recovery", "recovery.imitation", "training", "latency")
    for number in range(len(loaded.get("earlier") or ())):
        kinds |= {f"earlier.{number}": Earlier, **{f"earlier.{number}.{part}": kinds[part] for part in parts}}
    return [
        f"{part}.{key}"
        for part, kind in kinds.items()
        for key in _part(loaded, part)
        if key not in {field.name for field in fields(kind)} and (part, key) != ("source", "trained")
    ]


def _part(loaded: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of a plan by its name, which has dots where it lies in others, and numbers in lists."""
    part: Any = loaded
    for key in name.split("."):
        part = part[int(key)] if isinstance(part, list) else part.get(key)
        if not isinstance(part, Mapping | list):
            return {}
    found: Mapping[str, Any] = part
    return found
