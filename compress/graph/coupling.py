"""Which channel of which layer is coupled to which, unit by unit, and what else one traced pass found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pruneport.compress.graph.tracing.channel_ids import ChannelIds
from pruneport.compress.graph.tracing.dataflow import TracedBranch
from pruneport.compress.sizes.traced_sizes import Expression, QueriedSize

__all__ = ["CountedSize", "Coupling", "Key"]

Key = tuple[str, str]
"""Layer and axis."""


@dataclass(frozen=True, kw_only=True)
class Coupling:
    """Units: positions on axes of layers that must be removed together, and what the trace found, in units.

    What has a name of ``Trace`` is what that says, with units in place of channel ids.

    Attributes:
        units: By the unit's number: axis -> the positions that it occupies there.
        sizes: Positions on each axis.
        unprunable: By unit, why it cannot be removed: the first reason found.
        order: Place of each module in the order of execution.
        used_sizes: Sizes that forwards give to functions, with the unit of each channel that they count.
        asked_sizes: Sizes that forwards ask for.
        products: Multiply-accumulates that are not simply a layer's, with the units along each of the sizes that they
            are proportional to, and the layer among whose own they are counted.
        scaled_keys: Units of keys whose attention is scaled by the root of its own width, with the positions of the
            key's channels.
        channel_ids: What the units are numbers of.
        branches: The residual branches: what additions add to what it was computed from.
        idle: Layers that did not run.
        whole_channel_groups: Whether narrow channel groups of a convolution go as a whole.
    """

    units: Mapping[int, dict[Key, list[int]]]
    sizes: Mapping[Key, int]
    added: frozenset[int]
    normalised_over: frozenset[int]
    output: frozenset[int]
    unprunable: Mapping[int, str]
    order: Mapping[str, int]
    representation: frozenset[int]
    used_sizes: tuple[CountedSize, ...]
    asked_sizes: Mapping[QueriedSize, CountedSize]
    numbers: tuple[Expression, ...]
    compared: tuple[tuple[Expression, Expression], ...]
    counted: tuple[tuple[str, str, tuple[int, ...]], ...]
    attention_heads: frozenset[int]
    products: tuple[tuple[int, tuple[tuple[int, ...], ...], str], ...]
    applied_along: Mapping[str, tuple[int, ...]]
    scaled_keys: tuple[dict[int, tuple[tuple[Key, int], ...]], ...]
    channel_ids: ChannelIds
    branches: tuple[TracedBranch, ...] = ()
    idle: tuple[str, ...] = ()
    whole_channel_groups: bool = True


@dataclass(frozen=True, kw_only=True)
class CountedSize:
    """A size of a forward, and the channels that it counts.

    Attributes:
        leaf: Whose forward it was, in which of its calls, and where there.
        value: The size in the dense network.
        expression: What it is computed from.
        units: The unit of each channel along the dimension that it measures; 0 for none.
        start: The first channel that it counts.
        stop: The one behind the last.
    """

    leaf: QueriedSize
    value: int
    expression: Expression
    units: tuple[int, ...]
    start: int
    stop: int
