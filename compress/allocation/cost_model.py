"""What any choice of widths costs, from one count of the dense network.

A layer's multiply-accumulates and weights are proportional to each of its widths. So one count of the dense network and
the groups say what any allocation costs, without tracing again.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from pruneport.arrays import FloatArray
from pruneport.compress.allocation.cost import count_params
from pruneport.compress.allocation.forms import LayerShares, Presence, Price, Quadratic, WithPresence
from pruneport.compress.allocation.latency_model import LatencyModel
from pruneport.compress.graph.branches import Branch
from pruneport.compress.graph.coupling import Coupling
from pruneport.compress.graph.groups import Group
from pruneport.compress.records import Axis, Cost
from pruneport.compress.resize.layer_types import removed_whole
from pruneport.errors import TargetError

__all__ = ["LATENCIES", "CostModel"]

LATENCIES = ("latency", "latency_ms")
"""Targets that are counted by timings."""


@dataclass(frozen=True)
class _Term:
    """A cost proportional to up to two widths (indices into the axes; -1 stands for none)."""

    size: float
    first: int
    second: int = -1


class CostModel:
    """Cost of the network as a function of how many units each group keeps.

    Args:
        network: The dense network.
        groups: Its groups.
        macs_by_module: From ``count_macs_by_module``.
        coupling: Adds matrix products that are no layer's, and layers applied along other channels.
        original: What shares are of, where ``network`` was pruned from another one before; default: its own cost.
        branches: Residual branches that may be dropped: they are gone where all their groups keep no unit.

    Attributes:
        latency: What a target ``latency`` is counted by; None until it was measured (see ``with_latency``).
    """

    latency: LatencyModel | None = None

    def __init__(
        self,
        network: nn.Module,
        groups: Sequence[Group],
        macs_by_module: dict[str, int],
        coupling: Coupling | None = None,
        original: Cost | None = None,
        branches: Sequence[Branch] = (),
    ) -> None:
        self.dense = Cost(macs=macs_by_module[""], params=count_params(network))
        self.original = original or self.dense
        self._widths = np.array([group.width for group in groups], dtype=np.float64)
        axes: dict[tuple[str, Axis], int] = {}
        for group in groups:
            for member in group.members:
                axes.setdefault((member.module, member.axis), len(axes))
        products = coupling.products if coupling else ()
        lines: dict[Any, Sequence[int]] = dict(coupling.applied_along) if coupling else {}
        lines |= {
            (number, side): line for number, (_, sides, _) in enumerate(products) for side, line in enumerate(sides)
        }
        place = {key: len(axes) + number for number, key in enumerate(lines)}
        first = len(axes) + len(lines)
        rows = first + len(branches) + 1  # the last stands for a size that never changes
        self._presence = Presence(tuple(branch.groups[0] for branch in branches))
        self._branches = tuple(range(first, first + len(branches)))
        self._widths = self._presence.extended(self._widths)
        self._sizes = np.ones(rows)
        self._lost = np.zeros((rows, len(self._widths)))
        for number, row in enumerate(self._branches):
            self._lost[row, len(groups) + number] = 1
        for column, group in enumerate(groups):
            for member in group.members:
                row = axes[member.module, member.axis]
                self._sizes[row] = member.size
                self._lost[row, column] = member.positions.shape[1]
        owner = {unit: index for index, group in enumerate(groups) for unit in group.units}
        for key, line in lines.items():
            self._sizes[place[key]] = len(line)
            for unit in line:
                if unit in owner:
                    self._lost[place[key], owner[unit]] += 1 / groups[owner[unit]].width
        own = {index for branch in branches for index in branch.groups}
        changing = [not group.reason or index in own for index, group in enumerate(groups)]
        fixed = {row for row in range(first) if not self._lost[row, : len(groups)][changing].any()} | {rows - 1}
        inside = _Inside(branches, self._branches, {row for row in range(first) if self._lost[row, sorted(own)].any()})
        known = Counter[str]()
        for size, _, layer in products:
            known[layer] += size
        computed = {name: macs_by_module.get(f"{name}.parametrizations", 0) for name in macs_by_module}
        left = {name: max(0, count - known[name] - computed[name]) for name, count in macs_by_module.items() if name}
        macs, params = _terms(network, axes, left, place, fixed, inside)
        for number, (size, sides, layer) in enumerate(products):
            macs.append(_Term(size, *inside.sides(layer, [place[number, side] for side in range(len(sides))][:2])))
        self._macs, self._params = _pack(macs), _pack(params)
        self._folded = _folded(network, axes, computed)

    def macs(self, kept: FloatArray) -> float:
        """Multiply-accumulates where group ``i`` keeps ``kept[i]`` units."""
        return self.dense.macs - self._gone(kept).macs - self._saved(kept, self._macs)

    def params(self, kept: FloatArray) -> float:
        """Parameters where group ``i`` keeps ``kept[i]`` units."""
        return self.dense.params - self._gone(kept).params - self._saved(kept, self._params)

    def with_latency(self, latency: LatencyModel) -> CostModel:
        """The same with a model of the latency."""
        model = copy.copy(self)
        model.latency = latency
        return model

    def counted(self, kept: FloatArray, target: str) -> float:
        """What a target counts where group ``i`` keeps ``kept[i]`` units: see ``Cost.counted``.

        Of the target ``latency`` it is the share of the dense network's.

        Raises:
            TargetError: There is no model of the latency.
        """
        if target in LATENCIES:
            return self._latency().of(kept)
        return self.macs(kept) if target == "flops" else self.params(kept)

    def total(self, target: str) -> float:
        """What shares are of: the same of the original."""
        return 1.0 if target in LATENCIES else self.original.counted(target)

    def share_of_dense(self, kept: FloatArray, target: str) -> float:
        """The same as a share of the original's."""
        return self.counted(kept, target) / self.total(target)

    def price(self, target: str) -> Price:
        """The same for the knapsack."""
        if target in LATENCIES:
            return self._latency()
        polynomial = self.quadratic(target)
        return WithPresence(polynomial, self._presence) if self._branches else polynomial

    def _latency(self) -> LatencyModel:
        if self.latency is None:
            raise TargetError(
                "a latency target needs timings of the network, which `pruneport compress`, `pruneport ship` and "
                "`pruneport.prune` make; here give `flops`, `params` or `ratio`."
            )
        return self.latency

    def quadratic(self, target: str) -> Quadratic:
        """The same cost (``flops`` stands for multiply-accumulates, else ``params``) as a polynomial.

        Behind the widths stand the branches that may be dropped: 1 for one that is there.
        """
        sizes, first, second = self._macs if target == "flops" else self._params
        total = self.dense.counted(target)
        slope, start = self._shares()
        one, other = slope[first], slope[second]
        products = one.T @ (sizes[:, None] * other)
        linear = (sizes * start[first]) @ other + (sizes * start[second]) @ one
        constant = total - sizes.sum() + float(sizes @ (start[first] * start[second]))
        return Quadratic(constant=constant, linear=linear, products=(products + products.T) / 2)

    def layer_shares(self) -> LayerShares:
        """What any form of a cost that grows with the layers' widths is made of."""
        (macs, first, second), (slope, start) = self._macs, self._shares()
        return LayerShares(
            macs=macs,
            first=first,
            second=second,
            start=start,
            slope=slope,
            presence=self._presence,
            branches=self._branches,
        )

    def _shares(self) -> tuple[FloatArray, FloatArray]:
        """What is left of every size, as a slope by the kept units of each group, and a start."""
        slope = self._lost / self._sizes[:, None]
        return slope, 1 - slope @ self._widths

    def group_cost(self, index: int) -> Cost:
        """Dense cost of what would go with the whole group: its layers, by their share of the axis."""
        return self._without([index])

    def branch_cost(self, branch: Branch) -> Cost:
        """Dense cost of what goes with a branch."""
        return self._without([*branch.groups, *self._columns_of(branch)])

    def _columns_of(self, branch: Branch) -> list[int]:
        """Where a branch stands behind the widths."""
        groups = len(self._widths) - len(self._branches)
        return [groups + number for number, owner in enumerate(self._presence.owners) if owner == branch.groups[0]]

    def _without(self, entries: Sequence[int]) -> Cost:
        left = self._widths.copy()
        left[entries] = 0
        fraction = self._left_of(left)
        return Cost(macs=round(_saved(fraction, self._macs)), params=round(_saved(fraction, self._params)))

    def _saved(self, kept: FloatArray, terms: tuple[FloatArray, Any, Any]) -> float:
        """What the terms lose."""
        return _saved(self._left(kept), terms)

    def _gone(self, kept: FloatArray) -> Cost:
        """What goes as soon as a layer loses a channel: what its weight was computed from, and by."""
        left = self._left(kept)
        folded = [cost for cost, rows in self._folded if (left[rows] < 1).any()]
        return Cost(macs=sum(cost.macs for cost in folded), params=sum(cost.params for cost in folded))

    def _left(self, kept: FloatArray) -> FloatArray:
        """The share that is left of every size, where group ``i`` keeps ``kept[i]`` units."""
        return self._left_of(self._presence.extended(kept))

    def _left_of(self, entries: FloatArray) -> FloatArray:
        """The same by widths and branches."""
        left: FloatArray = 1 - self._lost @ (self._widths - entries) / self._sizes
        return left


def _saved(fraction: FloatArray, terms: tuple[FloatArray, Any, Any]) -> float:
    """What terms lose where this share is left of every size."""
    sizes, first, second = terms
    return float(np.sum(sizes * (1 - fraction[first] * fraction[second])))


@dataclass(frozen=True)
class _Inside:
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


def _pack(terms: list[_Term]) -> tuple[FloatArray, Any, Any]:
    """Sizes and the two indices of all terms, as arrays."""
    return (
        np.array([term.size for term in terms], dtype=np.float64),
        np.array([term.first for term in terms], dtype=np.int64),
        np.array([term.second for term in terms], dtype=np.int64),
    )


def _terms(
    network: nn.Module,
    axes: dict[tuple[str, Axis], int],
    macs_by_module: dict[str, int],
    applied_along: Mapping[Any, int],
    fixed: Collection[int],
    inside: _Inside,
) -> tuple[list[_Term], list[_Term]]:
    """Terms of the multiply-accumulates and of the parameters, layer by layer."""
    macs: list[_Term] = []
    params: list[_Term] = []
    modules, parameters = dict(network.named_modules()), dict(network.named_parameters())
    counted: set[int] = set()
    for name in dict.fromkeys(name for name, _ in axes):
        layer = modules.get(name)
        if layer is None:
            if name in parameters:
                rows = [row for (owner, _), row in axes.items() if owner == name]
                params.append(_Term(parameters[name].numel(), *inside.sides(name, rows[:2])))
            continue
        through = axes.get((name, "channels"), -1)
        first = axes.get((name, "out"), through)
        second = (
            -1 if isinstance(layer, nn.modules.conv._ConvNd) and removed_whole(layer) else axes.get((name, "in"), -1)
        )
        mixes = isinstance(layer, nn.MultiheadAttention)  # what is left of it grows with the attention heads alone
        rows = [first] if mixes else [first, second, applied_along.get(name, -1)]
        macs.append(_Term(macs_by_module.get(name, 0), *inside.sides(name, _two(rows, fixed))))
        apart = {id(parameters[owner]) for owner, _ in axes if owner in parameters}  # with axes of their own
        apart |= {id(parameter) for parameter in _gains(layer)}
        for parameter in [*layer.parameters(recurse=False), *_original(layer)]:
            if id(parameter) not in counted | apart:
                matrix = parameter.ndim == 2 or (parameter.ndim > 1 and not mixes)  # an attention has rows, too
                params.append(_Term(parameter.numel(), *inside.sides(name, [first, second if matrix else -1])))
            counted.add(id(parameter))
    owners = {name for name, _ in axes}
    for name, row in applied_along.items():
        if isinstance(name, str) and name not in owners:  # none of its own sizes can change
            macs.append(_Term(macs_by_module.get(name, 0), *inside.sides(name, [row])))
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


def _folded(
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
