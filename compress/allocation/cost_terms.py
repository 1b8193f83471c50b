"""What a network's cost is made of: terms, each proportional to up to two widths, layer by layer."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from pruneport.arrays import FloatArray
from pruneport.compress.graph.branches import Branch
from pruneport.compress.group_records import Axis, Cost
from pruneport.compress.resize.layer_types import removed_whole

__all__ = ["InBranches", "Term", "Terms", "folded_costs", "layer_terms", "pack", "saved"]


@dataclass(frozen=True)
class Term:
    """A cost proportional to up to two widths (indices into the axes; -1 stands for none)."""

    size: float
    first: int
    second: int = -1


Terms = tuple[FloatArray, Any, Any]
"""Sizes of all terms, and the two indices of each."""


@dataclass(frozen=True)
class InBranches:
    """What goes with branches, and not already with a group of theirs: the sizes that have to say so.

    Attributes:
        branches: The branches.
        rows: The size of each that is 1 while it is there.
        own: Sizes that groups of branches have a share of.
    """

    branches: Sequence[Branch]
    rows: Sequence[int]
    own: Collection[int]

    def sides(self, name: str, sides: Sequence[int]) -> list[int]:
        """Two sizes that a cost of a layer or parameter is proportional to, of which one says whether it is there.

        Where both change with other widths, the first is left out: what is counted of the finished network puts that
        right.
        """
        row = next((row for branch, row in zip(self.branches, self.rows, strict=True) if branch.holds(name)), None)
        known = [side for side in sides if side >= 0]
        if row is None or any(side in self.own for side in known):
            return list(sides)
        return [*known[-1:], row]


def _two(rows: Sequence[int], fixed: Collection[int]) -> list[int]:
    """The two sizes, at most, that can change: a layer along other channels has three, of which one is fixed."""
    return [row for row in rows if row >= 0 and row not in fixed][:2] or [-1]


def pack(terms: Sequence[Term]) -> Terms:
    """Sizes and the two indices of all terms, as arrays."""
    return (
        np.array([term.size for term in terms], dtype=np.float64),
        np.array([term.first for term in terms], dtype=np.int64),
        np.array([term.second for term in terms], dtype=np.int64),
    )


def saved(fraction: FloatArray, terms: Terms) -> float:
    """What terms lose where this share is left of every size."""
    sizes, first, second = terms
    return float(np.sum(sizes * (1 - fraction[first] * fraction[second])))


def layer_terms(
    network: nn.Module,
    axes: dict[tuple[str, Axis], int],
    macs_by_module: dict[str, int],
    applied_along: Mapping[Any, int],
    fixed: Collection[int],
    inside: InBranches,
) -> tuple[list[Term], list[Term]]:
    """Terms of the multiply-accumulates and of the parameters, layer by layer."""
    macs: list[Term] = []
    params: list[Term] = []
    modules, parameters = dict(network.named_modules()), dict(network.named_parameters())
    counted: set[int] = set()
    for name in dict.fromkeys(name for name, _ in axes):
        layer = modules.get(name)
        if layer is None:
            if name in parameters:
                rows = [row for (owner, _), row in axes.items() if owner == name]
                params.append(Term(parameters[name].numel(), *inside.sides(name, rows[:2])))
            continue
        through = axes.get((name, "channels"), -1)
        first = axes.get((name, "out"), through)
        second = (
            -1 if isinstance(layer, nn.modules.conv._ConvNd) and removed_whole(layer) else axes.get((name, "in"), -1)
        )
        mixes = isinstance(layer, nn.MultiheadAttention)  # what is left of it grows with the attention heads alone
        rows = [first] if mixes else [first, second, applied_along.get(name, -1)]
        macs.append(Term(macs_by_module.get(name, 0), *inside.sides(name, _two(rows, fixed))))
        apart = {id(parameters[owner]) for owner, _ in axes if owner in parameters}  # with axes of their own
        apart |= {id(parameter) for parameter in _gains(layer)}
        for parameter in [*layer.parameters(recurse=False), *_original(layer)]:
            if id(parameter) not in counted | apart:
                matrix = parameter.ndim == 2 or (parameter.ndim > 1 and not mixes)  # an attention has rows, too
                params.append(Term(parameter.numel(), *inside.sides(name, [first, second if matrix else -1])))
            counted.add(id(parameter))
    owners = {name for name, _ in axes}
    for name, row in applied_along.items():
        if isinstance(name, str) and name not in owners:  # none of its own sizes can change
            macs.append(Term(macs_by_module.get(name, 0), *inside.sides(name, [row])))
    return macs, params


def _original(layer: nn.Module) -> list[nn.Parameter]:
    """The parameters that a parametrised weight is computed from."""
    parametrised = getattr(layer, "parametrizations", None)
    return [] if parametrised is None else list(parametrised.parameters())


def _gains(layer: nn.Module) -> list[nn.Parameter]:
    """The gains of a weight norm, one an output."""
    parametrised = getattr(layer, "parametrizations", None)
    named = [*layer.named_parameters(recurse=False), *(() if parametrised is None else parametrised.named_parameters())]
    gains = [parameter for name, parameter in named if name == "weight_g" or name.endswith(".original0")]
    return [gain for gain in gains if gain.ndim > 1 and gain.numel() == max(gain.shape)]


def folded_costs(
    network: nn.Module, axes: Mapping[tuple[str, Axis], int], computed: Mapping[str, int]
) -> list[tuple[Cost, list[int]]]:
    """What goes with the first channel that a layer loses, since its weight is a plain one then, and the layer's axes.

    Args:
        network: The dense network.
        axes: Rows by layer and axis.
        computed: Multiply-accumulates that the layer's weight is computed by.
    """
    modules = dict(network.named_modules())
    costs = {
        name: Cost(macs=computed.get(name, 0), params=sum(part.numel() for part in _gains(modules[name])))
        for name in dict.fromkeys(name for name, _ in axes)
        if name in modules
    }
    return [
        (cost, [row for (owner, _), row in axes.items() if owner == name])
        for name, cost in costs.items()
        if cost.macs or cost.params
    ]
