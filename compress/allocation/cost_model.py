"""What any choice of widths costs, from one count of the dense network.

A layer's multiply-accumulates and weights are proportional to each of its widths. So one count of the dense network and
the groups say what any allocation costs, without tracing again.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from pruneport.arrays import FloatArray
from pruneport.compress.allocation.cost import count_params
from pruneport.compress.allocation.cost_terms import InBranches, Term, Terms, folded_costs, layer_terms, pack, saved
from pruneport.compress.allocation.forms import LayerShares, Presence, Price, Quadratic, WithPresence
from pruneport.compress.allocation.latency_model import LatencyModel
from pruneport.compress.graph.branches import Branch
from pruneport.compress.graph.coupling import Coupling
from pruneport.compress.graph.groups import Group
from pruneport.compress.group_records import Axis, Cost
from pruneport.errors import TargetError

__all__ = ["LATENCIES", "CostModel"]

LATENCIES = ("latency", "latency_ms")
"""Targets that are counted by timings."""


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
        inside = InBranches(
            branches, self._branches, {row for row in range(first) if self._lost[row, sorted(own)].any()}
        )
        known = Counter[str]()
        for size, _, layer in products:
            known[layer] += size
        computed = {name: macs_by_module.get(f"{name}.parametrizations", 0) for name in macs_by_module}
        left = {name: max(0, count - known[name] - computed[name]) for name, count in macs_by_module.items() if name}
        macs, params = layer_terms(network, axes, left, place, fixed, inside)
        for number, (size, sides, layer) in enumerate(products):
            macs.append(Term(size, *inside.sides(layer, [place[number, side] for side in range(len(sides))][:2])))
        self._macs, self._params = pack(macs), pack(params)
        self._folded = folded_costs(network, axes, computed)

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
        return Cost(macs=round(saved(fraction, self._macs)), params=round(saved(fraction, self._params)))

    def _saved(self, kept: FloatArray, terms: Terms) -> float:
        """What the terms lose."""
        return saved(self._left(kept), terms)

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
