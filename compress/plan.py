"""The plan: which units of which group are kept, what was asked and what was achieved, as JSON."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from torch import nn

from pruneport.compress.adapters import adapt, replace_sizes
from pruneport.compress.layers import axis_size, narrow, parts_by_name, ties_kept
from pruneport.compress.record import Axis, Calibrated, Cost, Member, Recovered, Scope, Trained
from pruneport.errors import BundleError
from pruneport.models.record import Source

if TYPE_CHECKING:
    from pruneport.compress.groups import Group

__all__ = [
    "FORMAT_VERSION",
    "GroupPlan",
    "Plan",
    "Request",
    "apply_plan",
    "compose",
    "group_plan",
    "parse_plan",
    "positions_kept",
]

FORMAT_VERSION = 2
_Sizes = Mapping[str, Mapping[str, Mapping[int, int]]]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for."""

    target: str
    value: float
    criterion: str
    scope: str
    ranking: str
    round_to: int
    max_pruning_ratio: float
    keep: tuple[str, ...] = ()
    attention: str = "width"
    prune_representation: bool = False


@dataclass(frozen=True, kw_only=True)
class GroupPlan:
    """One group: its units kept, or None where it was left dense.

    Attributes:
        asked: The width that the ranking asked for, before rounding.
        reason: Why it was left dense, or why kept differs from asked; else empty.
        macs: Dense multiply-accumulates that hang on the group.
        params: Dense parameters that hang on the group.
        heads: Whether its units are whole heads of an attention.
    """

    name: str
    scope: Scope
    width: int
    asked: float
    kept: tuple[int, ...] | None
    reason: str
    macs: int
    params: int
    members: tuple[Member, ...]
    heads: bool = False

    @property
    def kept_width(self) -> int:
        """Number of units that stay."""
        return self.width if self.kept is None else len(self.kept)


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
    def trained(self) -> bool:
        """Whether the weights were trained, by whoever made them or here."""
        return self.source.trained or self.training is not None

    def to_json(self) -> str:
        """The content of plan.json."""
        source = asdict(self.source) | {"trained": self.trained}
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
        return json.dumps(content, indent=1) + "\n"


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
    sizes: _Sizes | None = None,
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
            present = getattr(modules.get(name), attribute, None)
            fits = type(present) is int if type(value) is int else type(present) in (list, tuple)
            if not fits:
                raise BundleError(
                    f"the plan does not fit the network: it sets {name}.{attribute} to {value}, which there is "
                    f"{present!r}. Load it with the factory it was made with."
                )
            setattr(modules[name], attribute, list(value) if isinstance(present, list) else value)  # type: ignore[arg-type]


def parse_plan(text: str) -> Plan:
    """Read plan.json.

    Raises:
        BundleError: It is of a newer format, or not a well-formed plan; the message says where.
    """
    try:
        content = json.loads(text)
        version = content["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"plan.json is not a plan ({error!r}); expected JSON with a format_version.") from error
    if version not in (1, FORMAT_VERSION):
        raise BundleError(
            f"plan.json has format {version}; this pruneport reads formats 1 to {FORMAT_VERSION}. "
            "Upgrade with: pip install --upgrade pruneport."
        )
    try:
        source = dict(content["source"])
        source.pop("trained", None)
        source["input_shape"] = tuple(source["input_shape"])
        request = dict(content["request"])
        request["keep"] = tuple(request["keep"])
        return Plan(
            source=Source(**source),
            request=Request(**request),
            dense=Cost(**content["dense"]),
            pruned=Cost(**content["pruned"]),
            groups=tuple(_group_from_dict(entry) for entry in content["groups"]),
            libraries=dict(content["libraries"]),
            created=str(content["created"]),
            attributes=_attributes(content.get("attributes", {})),
            sizes=_sizes(content.get("sizes")),
            note=content["note"],
            masked_error=content["masked_error"],
            calibration=_calibrated(content.get("calibration")),
            recovery=Recovered(**recovery) if (recovery := content.get("recovery")) else None,
            training=_trained(content.get("training")),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"plan.json is not a well-formed plan: {error!r}. Compress again.") from error


def _attributes(entry: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, int | tuple[int, ...]]]:
    return {
        module: {name: int(value) if isinstance(value, int) else tuple(map(int, value)) for name, value in own.items()}
        for module, own in entry.items()
    }


def _sizes(entry: Any) -> dict[str, dict[str, dict[int, int]]] | None:
    if entry is None:
        return None
    return {
        module: {str(call): {int(slot): int(size) for slot, size in slots.items()} for call, slots in calls.items()}
        for module, calls in entry.items()
    }


def _calibrated(entry: Any) -> Calibrated | None:
    return Calibrated(**entry | {"skipped": tuple(entry["skipped"])}) if entry else None


def _trained(entry: Any) -> Trained | None:
    listed = ("classes", "mean", "std")
    return Trained(**entry | {name: tuple(entry[name]) for name in listed}) if entry else None


def compose(plan: Plan, further: Plan) -> Plan:
    """The plan that does both: ``further`` prunes what ``plan`` left, and knows no other layers.

    Args:
        plan: Of the dense network, or of none of its groups.
        further: Of the network that ``plan`` makes.

    Raises:
        BundleError: ``plan`` is of format 1 and the further pruning changes how forwards compute sizes.
    """
    if plan.sizes is None and further.sizes and any(group.kept is not None for group in plan.groups):
        raise BundleError(
            "this bundle is of an older pruneport, and its network cannot be pruned further. Compress it again from "
            "its source with this version."
        )
    before = {group.name: group for group in plan.groups}
    after = {group.name for group in further.groups}
    groups = (
        *(_composed(before[group.name], group) if group.name in before else group for group in further.groups),
        *(group for group in plan.groups if group.name not in after),
    )
    attributes = {
        name: {**plan.attributes.get(name, {}), **further.attributes.get(name, {})}
        for name in (*plan.attributes, *further.attributes)
    }
    errors = [error for error in (plan.masked_error, further.masked_error) if error is not None]
    return replace(
        further,
        source=plan.source,
        dense=plan.dense,
        groups=groups,
        attributes=attributes,
        sizes=None
        if plan.sizes is None and not further.sizes
        else _composed_sizes(plan.sizes or {}, further.sizes or {}),
        recovery=plan.recovery,
        note=None,
        masked_error=max(errors, default=None),
    )


def _composed_sizes(before: _Sizes | None, after: _Sizes | None) -> dict[str, dict[str, dict[int, int]]] | None:
    if before is None and not after:
        return None
    before, after = before or {}, after or {}
    return {
        module: {
            call: {**before.get(module, {}).get(call, {}), **after.get(module, {}).get(call, {})}
            for call in (*before.get(module, {}), *after.get(module, {}))
        }
        for module in (*before, *after)
    }


def _composed(before: GroupPlan, after: GroupPlan) -> GroupPlan:
    if after.kept is None:
        return before
    kept = after.kept if before.kept is None else tuple(before.kept[unit] for unit in after.kept)
    return replace(before, kept=kept, asked=after.asked, reason=after.reason)


def group_plan(group: Group, kept: Sequence[int] | None, asked: float, reason: str, cost: Cost) -> GroupPlan:
    """Record what was decided for a group."""
    return GroupPlan(
        name=group.name,
        scope=group.scope,
        width=group.width,
        asked=asked,
        kept=None if kept is None else tuple(kept),
        reason=reason,
        macs=cost.macs,
        params=cost.params,
        members=group.members,
        heads=group.heads,
    )


def _group_to_dict(group: GroupPlan) -> dict[str, Any]:
    content = {key: getattr(group, key) for key in ("name", "scope", "width", "asked", "reason", "macs", "params")}
    content["asked"] = round(group.asked, 3)
    if group.heads:
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


def _group_from_dict(entry: Mapping[str, Any]) -> GroupPlan:
    width = int(entry["width"])
    kept = entry["kept"]
    if kept is not None:
        kept = tuple(kept)
        whole = all(type(unit) is int for unit in kept)
        if not whole or not kept or list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= width:
            raise BundleError(
                f"plan.json: the kept indices of group {entry['name']} are not ascending numbers from 0 to "
                f"{width - 1}; the plan was damaged or edited. Compress again."
            )
    return GroupPlan(
        name=str(entry["name"]),
        scope=entry["scope"],
        width=width,
        asked=float(entry["asked"]),
        kept=kept,
        reason=str(entry["reason"]),
        macs=int(entry["macs"]),
        params=int(entry["params"]),
        members=tuple(_member_from_dict(member, width, str(entry["name"])) for member in entry["members"]),
        heads=bool(entry.get("heads", False)),
    )


def _member_from_dict(entry: Mapping[str, Any], width: int, group: str) -> Member:
    size = int(entry["size"])
    if "positions" in entry:
        positions = np.array(entry["positions"], dtype=np.int64)
    else:
        run = int(entry["run"])
        positions = int(entry["start"]) + np.arange(width * run, dtype=np.int64).reshape(width, run)
    if positions.ndim != 2 or len(positions) != width or positions.min() < 0 or positions.max() >= size:
        raise BundleError(
            f"plan.json: group {group} names positions outside the {size} of {entry['module']}; "
            "the plan was damaged or edited. Compress again."
        )
    if len(np.unique(positions)) != positions.size:
        raise BundleError(
            f"plan.json: group {group} names a position of {entry['module']} twice; "
            "the plan was damaged or edited. Compress again."
        )
    if entry["axis"] not in get_args(Axis):
        raise BundleError(f"plan.json: group {group} names an unknown axis {entry['axis']!r}. Compress again.")
    return Member(module=str(entry["module"]), axis=entry["axis"], size=size, positions=positions)
