"""Criteria: what makes a unit (a set of coupled channels) worth keeping."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pruneport.compress.groups import Group
from pruneport.compress.layers import weight_by_channel

__all__ = ["CRITERIA", "Criterion", "Scores", "score_groups"]

Scores = np.ndarray[Any, np.dtype[np.float64]]
Criterion = Callable[[nn.Module, Group, torch.Generator], Tensor]
"""Scores (units,) of one group, float64; higher is kept."""


def score_groups(
    network: nn.Module, groups: Sequence[Group], free: Sequence[bool], criterion: str, seed: int
) -> list[Scores]:
    """Score every unit of every group that may be pruned.

    Args:
        network: The dense network; it is only read.
        groups: Its groups.
        free: Whether each may be pruned; the others score one throughout.
        criterion: A key of ``CRITERIA``.
        seed: For criteria that draw numbers.

    Returns:
        For each group its scores (units,), divided by the group's mean so that they compare across groups.
    """
    generator = torch.Generator().manual_seed(seed)
    scores = []
    for group, prunable in zip(groups, free, strict=True):
        if not prunable:
            scores.append(np.ones(group.width))
            continue
        raw = CRITERIA[criterion](network, group, generator).numpy()
        mean = float(raw.mean())
        scores.append(raw / mean if mean > 0 else np.ones_like(raw))
    return scores


def _magnitude(power: int) -> Criterion:
    def score(network: nn.Module, group: Group, generator: torch.Generator) -> Tensor:
        rows = []
        for member in group.members:
            weight = weight_by_channel(network, member.module, member.axis)
            if weight is not None:
                sums = weight.abs().pow(power).sum(1, dtype=torch.float64)
                rows.append(sums[torch.from_numpy(member.positions)].sum(1))
        return torch.stack(rows).mean(0) if rows else torch.ones(group.width, dtype=torch.float64)

    return score


def _l1(network: nn.Module, group: Group, generator: torch.Generator) -> Tensor:
    """Mean over the group's layers of the sum of |w| at the unit (Li et al., 2017, arXiv 1608.08710)."""
    return _magnitude(1)(network, group, generator)


def _l2(network: nn.Module, group: Group, generator: torch.Generator) -> Tensor:
    """Mean over the group's layers of the sum of w squared at the unit."""
    return _magnitude(2)(network, group, generator)


def _random(network: nn.Module, group: Group, generator: torch.Generator) -> Tensor:
    """Uniform in [0, 1), seeded: the baseline that every criterion has to beat."""
    return torch.rand(group.width, generator=generator, dtype=torch.float64)


CRITERIA: Mapping[str, Criterion] = MappingProxyType({"l1": _l1, "l2": _l2, "random": _random})
