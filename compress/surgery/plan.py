"""The plan: which units of which group are kept, what was asked and what was achieved, as JSON."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from pruneport.compress.records import (
    Axis,
    Calibrated,
    Cost,
    GroupPlan,
    Member,
    Recovered,
    Request,
    Trained,
    scope_in_files,
)
from pruneport.compress.resize.hardcoded_widths import adapt, replace_sizes
from pruneport.compress.resize.layers import axis_size, narrow, parts_by_name, ties_kept
from pruneport.compress.surgery.plan_schema import PlanDocument, check_sizes, read_groups, unknown_keys
from pruneport.documents import fit_document, load_document
from pruneport.errors import BundleError
from pruneport.models.record import Source, fields_of_source

if TYPE_CHECKING:
    from pruneport.compress.graph.groups import Group

__all__ = ["FORMAT_VERSION", "GroupPlan", "Plan", "Request", "apply_plan", "group_plan", "parse_plan", "positions_kept"]

FORMAT_VERSION = 2
_NO_PLAN = ("plan.json is not a well-formed plan", "Compress again.")
Sizes = Mapping[str, Mapping[str, Mapping[int, int]]]


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
        training: How it was fine-tuned, or None.
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
    training: Trained | None = None

    @property
    def macs_kept(self) -> float:
        """The share of the dense network's multiply-accumulates that is left."""
        return self.pruned.share_of(self.dense, "flops")

    @property
    def params_kept(self) -> float:
        """The share of the dense network's parameters that is left."""
        return self.pruned.share_of(self.dense, "params")

    @property
    def trained(self) -> bool:
        """Whether the weights were trained, by whoever made them or here."""
        return self.source.trained or self.training is not None

    def to_json(self) -> str:
        """The content of plan.json."""
        source = self.source.to_dict() | {"trained": self.trained}
        content = {
            "format_version": FORMAT_VERSION,
            "created": self.created,
            "libraries": self.libraries,
            "source": source,
            "request": asdict(self.request),
            "dense": asdict(self.dense),
            "pruned": asdict(self.pruned),
            "attributes": self.attributes,
            "sizes": self.sizes,
            "note": self.note,
            "masked_error": self.masked_error,
            "calibration": None if self.calibration is None else asdict(self.calibration),
            "recovery": None if self.recovery is None else asdict(self.recovery),
            "training": None if self.training is None else asdict(self.training),
            "groups": [_group_to_dict(group) for group in self.groups],
        }
        return json.dumps(content, indent=1, allow_nan=False) + "\n"


def positions_kept(
    members: Sequence[tuple[Member, Sequence[int]]],
) -> dict[str, dict[str, list[int]]]:
    """Turn kept units of members into kept positions, by layer and axis.

    An axis that belongs to several groups (after a concatenation) loses what any of them removes.
    """
    lost: dict[tuple[str, Axis], set[int]] = defaultdict(set)
    sizes: dict[tuple[str, Axis], int] = {}
    for member, kept in members:
        removed = np.ones(len(member.positions), dtype=bool)
        removed[list(kept)] = False
        lost[member.module, member.axis].update(member.positions[removed].ravel().tolist())
        sizes[member.module, member.axis] = member.size
    by_layer: dict[str, dict[str, list[int]]] = defaultdict(dict)
    for (name, axis), gone in lost.items():
        by_layer[name][axis] = [position for position in range(sizes[name, axis]) if position not in gone]
    return dict(by_layer)


def apply_plan(
    network: nn.Module,
    groups: Sequence[GroupPlan],
    attributes: Mapping[str, Mapping[str, int | tuple[int, ...]]] = MappingProxyType({}),
    sizes: Sizes | None = None,
) -> None:
    """Shrink the dense ``network`` in place, and set its modules' attributes and the sizes that they compute.

    Nothing is traced. Where ``sizes`` is None, as in plans of format 1, known types are adapted instead.

    Raises:
        BundleError: The plan does not fit the network.
        PruningError: A layer cannot be resized.
    """
    kept = [(member, group.kept) for group in groups if group.kept is not None for member in group.members]
    layers = parts_by_name(network)
    for member, _ in kept:
        layer = layers.get(member.module)
        size = 0 if layer is None else axis_size(layer, member.axis)
        if layer is None or size != member.size:
            found = "no such layer" if layer is None else f"a {type(layer).__name__} with {size} there"
            raise BundleError(
                f"the plan does not fit the network at {member.module}: the plan shrinks its {member.size} channels "
                f"({member.axis}), the network has {found}. Load it with the factory it was made with."
            )
    shrunk = positions_kept(kept)
    with ties_kept(network, shrunk):
        for name, keep in shrunk.items():
            try:
                narrow(network, name, keep)
            except (AttributeError, IndexError, RuntimeError) as error:
                raise BundleError(
                    f"the plan does not fit the network at {name}: {error}. Load it with the factory it was made with."
                ) from error
    modules = dict(network.named_modules())
    if sizes is None:
        adapt(network, shrunk)
    elif missing := sorted(set(sizes) - set(modules)):
        raise BundleError(
            f"the plan does not fit the network: it sets sizes in {', '.join(missing[:10])}, which is not there. Load "
            "it with the factory it was made with."
        )
    else:
        replace_sizes(network, sizes)
    for name, own in attributes.items():
        for attribute, value in own.items():
            present = vars(modules[name]).get(attribute) if name in modules else None
            if not _narrows(present, value):
                raise BundleError(
                    f"the plan does not fit the network: it sets {name}.{attribute} to {value}, which there is "
                    f"{present!r}. Load it with the factory it was made with."
                )
            setattr(modules[name], attribute, list(value) if isinstance(present, list) else value)  # type: ignore[arg-type]


def _narrows(present: Any, value: int | tuple[int, ...]) -> bool:
    """Whether a module's attribute can have this value once its network is pruned: no width grows."""
    if not isinstance(value, tuple):
        return type(present) is type(value) is int and min(1, present) <= value <= present
    return (
        type(present) in (list, tuple)
        and len(present) == len(value)
        and all(type(old) is int and min(1, old) <= new <= old for old, new in zip(present, value, strict=True))
    )


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
    groups = read_groups(document.groups, shapes)
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
    )


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
