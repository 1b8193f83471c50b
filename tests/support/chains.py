"""Allocations of a chain of layers, whose cost is known."""

from __future__ import annotations

import numpy as np

from pruneport.compress.allocation.cost import Cost
from pruneport.compress.allocation.cost_model import CostModel
from pruneport.compress.allocation.search import Allocation, allocate
from pruneport.compress.allocation.target import why_dense
from pruneport.compress.graph.groups import Group, Role
from pruneport.compress.options import PruneOptions

__all__ = ["ChainCost", "group", "run"]


class ChainCost(CostModel):
    """Cost of a chain of layers, each as wide as its group: what a plain network of convolutions costs."""

    def __init__(self, widths: list[int], areas: list[int]) -> None:
        self.areas = np.array(areas, dtype=np.float64)
        full = np.array(widths, dtype=np.float64)
        self.dense = Cost(macs=round(self.macs(full)), params=round(self.params(full)))
        self.original = self.dense

    def params(self, kept: np.ndarray) -> float:
        return float(np.sum(np.append(3.0, kept) * np.append(kept, 5.0)) * 9)

    def macs(self, kept: np.ndarray) -> float:
        return float(np.sum(np.append(3.0, kept) * np.append(kept, 5.0) * self.areas) * 9)


def group(width: int, name: str = "layer", blocks: int = 1, role: Role = "filters", reason: str = "") -> Group:
    return Group(name=name, width=width, members=(), role=role, blocks=blocks, reason=reason)


def run(
    widths: list[int], options: PruneOptions, blocks: list[int] | None = None, seed: int = 0
) -> tuple[Allocation, ChainCost, list[Group]]:
    generator = np.random.default_rng(seed)
    groups = [group(width, f"layer{i}", (blocks or [1] * len(widths))[i]) for i, width in enumerate(widths)]
    scores = [generator.random(width) for width in widths]
    cost = ChainCost(widths, [2 ** (len(widths) - i) for i in range(len(widths) + 1)])
    reasons = [why_dense(one, options) for one in groups]
    return allocate(groups, scores, cost, options, reasons), cost, groups
