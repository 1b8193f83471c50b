"""What a plan says of the network: what it costs, its groups, and the branches that were dropped. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

from pruneport.arrays import IntArray
from pruneport.documents import Count

__all__ = [
    "Axis",
    "Cost",
    "DroppedBranch",
    "GroupPlan",
    "Member",
    "Role",
    "ScopeInFiles",
    "role_of",
    "scope_in_files",
]

Axis = Literal["out", "in", "channels", "dim0", "dim1", "dim2", "dim3", "dim4", "dim5"]
"""Dimension of a layer: its outputs, its inputs, or both at once (norms, depthwise convolutions); of an
unwrapped parameter or buffer, its number."""

Role = Literal["filters", "stream", "representation", "output"]
"""Of a group: it ends inside a block, is a residual stream or feeds one, is what the output layer reads, or leaves the
network."""

ScopeInFiles = Literal["filters", "channels", "representation", "output"]
"""The same in plan.json and in ``inspect``, where it is named ``scope``, and a stream by the option that prunes it."""


def scope_in_files(role: Role) -> ScopeInFiles:
    """How a role is written."""
    return "channels" if role == "stream" else role


def role_of(scope: ScopeInFiles) -> Role:
    """The role that was written so."""
    return "stream" if scope == "channels" else scope


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one image costs: multiply-accumulates (fvcore's "flops") and stored parameters."""

    macs: Count
    params: Count

    def counted(self, target: str) -> int:
        """What a target counts: multiply-accumulates for ``flops``, else parameters."""
        return self.macs if target == "flops" else self.params

    def share_of(self, dense: Cost, target: str) -> float:
        """What is left of the dense network's cost, for a target ``flops`` or ``params``."""
        return self.counted(target) / dense.counted(target)


@dataclass(frozen=True, kw_only=True, eq=False)
class Member:
    """One axis of one layer that loses channels with the group.

    Attributes:
        module: Name of the layer (or unwrapped parameter) in the network.
        axis: Which of its dimensions.
        size: The dense size of that dimension.
        positions: (units, n) array: the n positions on the axis that each unit occupies.
    """

    module: str
    axis: Axis
    size: int
    positions: IntArray


@dataclass(frozen=True, kw_only=True)
class GroupPlan:
    """One group: its units kept, or None where it was left dense; none where it went with a dropped branch.

    Attributes:
        asked: The width that the ranking asked for, before rounding.
        reason: Why it was left dense, or why kept differs from asked; else empty.
        macs: Multiply-accumulates of the dense network that would go with the whole group.
        params: Parameters of the dense network that would go with the whole group.
        whole_attention_heads: Whether its units are whole attention heads.
    """

    name: str
    role: Role
    width: int
    asked: float
    kept: tuple[int, ...] | None
    reason: str
    macs: int
    params: int
    members: tuple[Member, ...]
    whole_attention_heads: bool = False

    @property
    def kept_width(self) -> int:
        """Number of units that stay."""
        return self.width if self.kept is None else len(self.kept)

    @property
    def narrower(self) -> bool:
        """Whether it lost some of its units, and not all with a dropped branch."""
        return bool(self.kept)


@dataclass(frozen=True, kw_only=True)
class DroppedBranch:
    """A residual branch f of x + f(x) that was dropped as a whole: x is left.

    Attributes:
        name: As in ``inspect``.
        addition: The module in whose forward the addition stands.
        modules: What stands in the place of its modules: the length of the tuple that each returns, 0 for a tensor.
        parameters: Its parameters that are no module's of these.
        groups: The groups that went with it; their ``kept`` is empty.
        reason: Why it was dropped.
        macs: Its multiply-accumulates in the dense network.
        params: Its parameters there.
    """

    name: str
    addition: str
    modules: dict[str, Annotated[Count, msgspec.Meta(le=16)]]
    parameters: tuple[str, ...] = ()
    groups: tuple[str, ...]
    reason: str
    macs: Count
    params: Count
