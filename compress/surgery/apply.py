"""The plan applied: the dense network made the pruned one, without a trace."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import nn

from pruneport.compress.group_records import Axis, DroppedBranch, GroupPlan, Member
from pruneport.compress.resize.hardcoded_widths import adapt, replace_sizes
from pruneport.compress.resize.layers import axis_size, narrow, parts_by_name, ties_kept
from pruneport.compress.surgery.dropping import drop_branches
from pruneport.errors import BundleError

__all__ = ["Sizes", "apply_plan", "positions_kept"]

Sizes = Mapping[str, Mapping[str, Mapping[int, int]]]
"""Module -> call -> slot -> size, as ``Plan.sizes``."""


def apply_plan(
    network: nn.Module,
    groups: Sequence[GroupPlan],
    attributes: Mapping[str, Mapping[str, int | tuple[int, ...]]] = MappingProxyType({}),
    sizes: Sizes | None = None,
    branches: Sequence[DroppedBranch] = (),
) -> None:
    """Shrink the dense ``network`` in place, set its modules' attributes and the sizes that they compute.

    Then branches are dropped.
    Nothing is traced. Where ``sizes`` is None, as in plans of format 1, known types are adapted instead.

    Raises:
        BundleError: The plan does not fit the network.
        PruningError: A layer cannot be resized.
    """
    kept = [(member, group.kept) for group in groups if group.kept for member in group.members]
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
    drop_branches(network, branches)


def _narrows(present: Any, value: int | tuple[int, ...]) -> bool:
    """Whether a module's attribute can have this value once its network is pruned: no width grows."""
    if not isinstance(value, tuple):
        return type(present) is type(value) is int and min(1, present) <= value <= present
    return (
        type(present) in (list, tuple)
        and len(present) == len(value)
        and all(type(old) is int and min(1, old) <= new <= old for old, new in zip(present, value, strict=True))
    )


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
