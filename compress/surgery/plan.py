"""The plan: which units of which group are kept, what was asked and what was achieved, as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import nn

from pruneport.compress.group_records import Cost, DroppedBranch, GroupPlan, scope_in_files
from pruneport.compress.records import Calibrated, Earlier, LatencyReached, Recovered, Request, Trained
from pruneport.compress.surgery.plan_bounds import check_sizes, read_groups
from pruneport.compress.surgery.plan_schema import PlanDocument, unknown_keys
from pruneport.documents import fit_document, load_document
from pruneport.errors import BundleError
from pruneport.models.preparation.known import infer_preprocessing
from pruneport.models.record import Preprocessing, Source, fields_of_source

if TYPE_CHECKING:
    from pruneport.compress.graph.groups import Group

__all__ = ["FORMAT_VERSION", "GroupPlan", "Plan", "Request", "group_plan", "parse_plan", "preprocessing_of"]

FORMAT_VERSION = 2
_NO_PLAN = ("plan.json is not a well-formed plan", "Compress again.")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that turns the dense network into the pruned one, and why.

    Attributes:
        attributes: Widths that forwards take from attributes: module -> attribute -> value.
        sizes: Sizes that forwards compute otherwise: module -> call (see ``call_site``) -> slot -> size; None in plans
            of format 1, whose networks are adapted by their types.
        masked_error: Largest output difference between the pruned network and the dense one whose removed
            channels are zeroed, relative to the outputs' size; None where that would prove nothing (norms that
            average over channels, all outputs zero).
        calibration: The inputs that were used, or None.
        recovery: What was done after pruning, or None.
        training: How it was fine-tuned, ``outside`` where somebody else's code trained it, or None.
        earlier: What was done before, the oldest first, where this network was compressed further; ``groups`` and
            ``dense`` are of the original all the same.
        dense_onnx: Which network dense.onnx is: the original, or the one that was compressed further, where the
            original's weights could not be had.
        latency: How a latency target was met, or None.
        branches: The residual branches that were dropped as a whole.
    """

    source: Source
    request: Request
    dense: Cost
    pruned: Cost
    groups: tuple[GroupPlan, ...]
    libraries: dict[str, str]
    created: str
    attributes: dict[str, dict[str, int | tuple[int, ...]]] = field(default_factory=dict)
    sizes: dict[str, dict[str, dict[int, int]]] | None = None
    note: str | None = None
    masked_error: float | None = None
    calibration: Calibrated | None = None
    recovery: Recovered | None = None
    training: Trained | Literal["outside"] | None = None
    earlier: tuple[Earlier, ...] = ()
    dense_onnx: Literal["original", "start"] = "original"
    latency: LatencyReached | None = None
    branches: tuple[DroppedBranch, ...] = ()

    @property
    def macs_kept(self) -> float:
        """The share of the dense network's multiply-accumulates that is left."""
        return self.pruned.share_of(self.dense, "flops")

    @property
    def params_kept(self) -> float:
        """The share of the dense network's parameters that is left."""
        return self.pruned.share_of(self.dense, "params")

    @property
    def latency_kept(self) -> float | None:
        """The share of the dense network's latency, where a latency target was given and met by measurement."""
        return None if self.latency is None else self.latency.kept

    @property
    def trained(self) -> bool:
        """Whether the weights were trained, by whoever made them or here."""
        return self.source.trained or self.trained_since

    @property
    def trained_since(self) -> bool:
        """Whether they were trained since they were the dense network's."""
        return any(done is not None for done in self._trainings)

    @property
    def comparable(self) -> bool:
        """Whether the outputs of ``dense_onnx`` mean what this network's do: classes of a fine-tuning are others."""
        return self.dense_onnx == "start" or not any(isinstance(done, Trained) for done in self._trainings)

    @property
    def dense_onnx_cost(self) -> Cost:
        """What the network in dense.onnx costs."""
        return self.earlier[-1].pruned if self.dense_onnx == "start" else self.dense

    @property
    def _trainings(self) -> tuple[Trained | Literal["outside"] | None, ...]:
        return (*(step.training for step in self.earlier), self.training)

    def to_json(self) -> str:
        """The content of plan.json."""
        source = self.source.to_dict() | {"trained": self.trained}
        content = {
            "format_version": FORMAT_VERSION,
            "created": self.created,
            "libraries": self.libraries,
            "source": source,
            "request": _request_to_dict(self.request),
            "dense": asdict(self.dense),
            "pruned": asdict(self.pruned),
            "attributes": self.attributes,
            "sizes": self.sizes,
            "note": self.note,
            "masked_error": self.masked_error,
            "calibration": None if self.calibration is None else asdict(self.calibration),
            "recovery": _recovery_to_dict(self.recovery),
            "training": asdict(self.training) if isinstance(self.training, Trained) else self.training,
            **({"earlier": [_earlier_to_dict(step) for step in self.earlier]} if self.earlier else {}),
            **({"dense_onnx": self.dense_onnx} if self.dense_onnx != "original" else {}),
            "groups": [_group_to_dict(group) for group in self.groups],
        }
        if self.latency is not None:  # earlier versions read plans without it
            content["latency"] = asdict(self.latency)
        if self.branches:
            content["branches"] = [asdict(branch) for branch in self.branches]
        return json.dumps(content, indent=1, allow_nan=False) + "\n"


def parse_plan(content: str | bytes, shapes: Mapping[str, Sequence[int]] | None = None) -> Plan:
    """Read plan.json.

    Args:
        content: JSON.
        shapes: Of the pruned network's weights, by name. What the plan's numbers may make of memory is bounded by them.

    Raises:
        BundleError: It is of a newer format, or not a well-formed plan; the message says where.
    """
    loaded = load_document(content, (1, FORMAT_VERSION), *_NO_PLAN)
    if "source" in loaded:
        loaded["source"] = fields_of_source(loaded["source"])
    document = fit_document(loaded, PlanDocument, *_NO_PLAN)
    if unknown := unknown_keys(loaded):
        raise BundleError(f"{_NO_PLAN[0]}: {', '.join(unknown[:10])} are not known. {_NO_PLAN[1]}")
    groups = read_groups(document.groups, shapes, document.branches)
    check_sizes(document, shapes)
    return Plan(
        source=document.source,
        request=document.request,
        dense=document.dense,
        pruned=document.pruned,
        groups=groups,
        libraries=document.libraries,
        created=document.created,
        attributes=document.attributes,
        sizes=document.sizes,
        note=document.note,
        masked_error=document.masked_error,
        calibration=document.calibration,
        recovery=document.recovery,
        training=document.training,
        earlier=document.earlier,
        dense_onnx=document.dense_onnx,
        latency=document.latency,
        branches=document.branches,
    )


def preprocessing_of(plan: Plan, network: nn.Module) -> Preprocessing | None:
    """How images become the inputs of a plan's network; None where these are no images.

    Args:
        plan: One of an earlier version does not record it: then it is what its training used, or what its source says.
        network: Dense or pruned.
    """
    if plan.source.preprocessing is not None:
        return plan.source.preprocessing
    if isinstance(done := plan.training, Trained):
        return Preprocessing(
            resize=done.resize, interpolation="bilinear", mean=done.mean, std=done.std, origin="the training's"
        )
    return infer_preprocessing(plan.source, network)


def group_plan(group: Group, kept: Sequence[int] | None, asked: float, reason: str, cost: Cost) -> GroupPlan:
    """Record what was decided for a group."""
    return GroupPlan(
        name=group.name,
        role=group.role,
        width=group.width,
        asked=asked,
        kept=None if kept is None else tuple(kept),
        reason=reason,
        macs=cost.macs,
        params=cost.params,
        members=group.members,
        whole_attention_heads=group.whole_attention_heads,
    )


def _request_to_dict(request: Request) -> dict[str, Any]:
    """A request as plan.json has it: ``depth`` stands there where branches may be dropped."""
    return {name: value for name, value in asdict(request).items() if (name, value) != ("depth", "never")}


def _recovery_to_dict(done: Recovered | None) -> dict[str, Any] | None:
    """A recovery as plan.json has it, without what earlier versions do not know where that says nothing."""
    plain, usual = None if done is None else asdict(done), {"reference": "dense", "imitation": None}
    return plain and {key: value for key, value in plain.items() if key not in usual or value != usual[key]}


def _earlier_to_dict(step: Earlier) -> dict[str, Any]:
    said = {"recovery": _recovery_to_dict(step.recovery), "request": _request_to_dict(step.request)}
    return asdict(step) | said


def _group_to_dict(group: GroupPlan) -> dict[str, Any]:
    """A group as plan.json has it."""
    content: dict[str, Any] = {
        "name": group.name,
        "scope": scope_in_files(group.role),
        "width": group.width,
        "asked": round(group.asked, 3),
        "reason": group.reason,
        "macs": group.macs,
        "params": group.params,
    }
    if group.whole_attention_heads:
        content["heads"] = True
    content["kept"] = None if group.kept is None else list(group.kept)
    content["members"] = [
        {"module": member.module, "axis": member.axis, "size": member.size} | _positions_to_dict(member.positions)
        for member in group.members
    ]
    return content


def _positions_to_dict(positions: Any) -> dict[str, Any]:
    """Unit ``u`` mostly occupies ``start + u * run … start + (u + 1) * run``; else every position is listed."""
    start, run = int(positions[0, 0]), positions.shape[1]
    if np.array_equal(positions.ravel(), start + np.arange(positions.size)):
        return {"start": start, "run": run}
    return {"positions": positions.tolist()}
