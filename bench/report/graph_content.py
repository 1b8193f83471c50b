"""What a drawing of the coupled groups shows: the groups, and the layers in the order in which they run.

A plan.json says it as well as what ``inspect`` finds: every group lists its members in the order in which they run, and
groups share layers, so that the lists together give the order of all.
"""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pruneport.compress.group_records import Role, role_of
from pruneport.documents import Json

if TYPE_CHECKING:
    from pruneport.compress.assessment import GroupView

__all__ = ["DrawnGroup", "DrawnLayer", "GraphContent", "content_of_plan", "content_of_views"]

_DEEPEST = 12  # modules around a layer that are looked at
Axes = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class DrawnGroup:
    """A coupled group.

    Attributes:
        name: The first layer that makes its channels.
        width: Units of the dense network.
        kept: Units that stay; None where nothing has been pruned yet.
        role: As in the plan.
        dense: Whether it stays dense, or would.
        reason: Why; or why its width is not the one that was asked for; else empty.
    """

    name: str
    width: int
    kept: int | None
    role: Role
    dense: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class DrawnLayer:
    """A layer, or a parameter outside of one, with the groups whose channels it reads and makes, by their numbers.

    What works on each channel alone, as norms and depthwise convolutions do, reads and makes the same.
    """

    name: str
    reads: tuple[int, ...]
    makes: tuple[int, ...]
    parameter: bool = False


@dataclass(frozen=True, kw_only=True)
class GraphContent:
    """All that is drawn: the groups in network order, and the layers in the order in which they run."""

    title: str
    pruned: bool
    groups: tuple[DrawnGroup, ...]
    layers: tuple[DrawnLayer, ...]


def content_of_plan(plan: Json) -> GraphContent:
    """Take what is drawn from the content of a plan.json."""
    groups = tuple(
        DrawnGroup(
            name=group["name"],
            width=group["width"],
            kept=group["width"] if group["kept"] is None else len(group["kept"]),
            role=role_of(group["scope"]),
            dense=group["kept"] is None,
            reason=group["reason"],
        )
        for group in plan["groups"]
    )
    members = [tuple((member["module"], member["axis"]) for member in group["members"]) for group in plan["groups"]]
    return GraphContent(title=plan["source"]["spec"], pruned=True, groups=groups, layers=_layers(members))


def content_of_views(title: str, views: Iterable[GroupView]) -> GraphContent:
    """Take what is drawn from what ``describe_groups`` found."""
    views = tuple(views)
    groups = tuple(
        DrawnGroup(
            name=view.group.name,
            width=view.group.width,
            kept=None,
            role=view.group.role,
            dense=bool(view.reason),
            reason=view.reason,
        )
        for view in views
    )
    members = [tuple((member.module, member.axis) for member in view.group.members) for view in views]
    return GraphContent(title=title, pruned=False, groups=groups, layers=_layers(members))


def _layers(members: Sequence[Axes]) -> tuple[DrawnLayer, ...]:
    """Every layer once, in the order in which they run, with its groups."""
    by_axis: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for number, axes in enumerate(members):
        for name, axis in axes:
            by_axis[name][axis].append(number)
    layers = []
    for name in _in_order(members):
        axes_of = by_axis[name]
        inside = tuple(axes_of["channels"])
        parameter = _is_parameter(axes_of)
        reads, makes = tuple(axes_of["in"]) or inside, tuple(axes_of["out"]) or inside
        if parameter:
            reads = makes = tuple(dict.fromkeys(itertools.chain.from_iterable(axes_of.values())))
        layers.append(DrawnLayer(name=name, reads=reads, makes=makes, parameter=parameter))
    return tuple(layers)


def _is_parameter(axes: Iterable[str]) -> bool:
    return all(axis.startswith("dim") or axis in ("in", "out", "channels") for axis in axes) and any(
        axis.startswith("dim") for axis in axes
    )


def _in_order(members: Sequence[Axes]) -> Iterator[str]:
    """The names of all layers so that each group's come in its own order; parameters follow those they belong to.

    Where the lists contradict each other, as they may in a file that was edited, the first list has its way.
    """
    layers = [[name for name, axis in axes if not axis.startswith("dim")] for axes in members]
    place = {name: index for index, name in enumerate(dict.fromkeys(itertools.chain.from_iterable(layers)))}
    after: dict[str, set[str]] = defaultdict(set)
    waits: dict[str, set[str]] = defaultdict(set)
    for names in layers:
        for before, name in itertools.pairwise(dict.fromkeys(names)):
            after[before].add(name)
            waits[name].add(before)
    ready = [(place[name], name) for name in place if not waits[name]]
    heapq.heapify(ready)
    ordered: dict[str, None] = {}
    freed: list[str] = []
    last, left = "", iter(place)
    while len(ordered) < len(place):
        while ready and ready[0][1] in ordered:
            heapq.heappop(ready)
        choices = [*freed, *(name for _, name in ready[:1])] or [next(name for name in left if name not in ordered)]
        last = min(choices, key=lambda name: (-_nearness(name, last), place[name]))
        ordered[last] = None
        freed = []
        for follower in after[last]:
            waits[follower].discard(last)
            if not waits[follower] and follower not in ordered:
                heapq.heappush(ready, (place[follower], follower))
                freed.append(follower)
    yield from _with_parameters(list(ordered), members)


def _nearness(name: str, other: str) -> int:
    """How many modules around two layers are the same: a branch goes on before the next one begins."""
    pairs = zip(name.split(".", _DEEPEST), other.split(".", _DEEPEST), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _with_parameters(ordered: Sequence[str], members: Sequence[Axes]) -> Iterator[str]:
    """Put each parameter behind the last layer of its own module, or else behind the first layer of its group."""
    last_in: dict[str, str] = {}
    for name in ordered:
        parts = name.split(".", _DEEPEST)
        last_in.update((".".join(parts[:end]), name) for end in range(1, len(parts) + 1))
    behind: dict[str, dict[str, None]] = defaultdict(dict)
    layers = set(ordered)
    known = set(ordered)
    for axes in members:
        first = next((name for name, axis in axes if not axis.startswith("dim")), "")
        for name, axis in axes:
            if axis.startswith("dim") and name not in known:
                known.add(name)
                module = name.rpartition(".")[0]
                behind[last_in.get(module, first) if _is_block(module, layers) else first][name] = None
    yield from behind.pop("", ())
    for name in ordered:
        yield name
        yield from behind.pop(name, ())


def _is_block(module: str, layers: Set[str]) -> bool:
    """Whether a module is one of several alike, so that its parameters are best shown with it."""
    return bool(module) and (module in layers or module.rpartition(".")[2][-1:].isdigit())
