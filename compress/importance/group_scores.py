"""From numbers a weight to one score a unit: the reduction that all criteria share."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from pruneport.compress.graph.groups import Group
from pruneport.compress.group_records import Member
from pruneport.compress.resize.layers import weight_by_channel

__all__ = ["reduce_group", "sum_of_squares", "with_values"]


def reduce_group(
    network: nn.Module,
    group: Group,
    score: Callable[[Tensor], Tensor],
    wanted: Callable[[Member], bool] = lambda member: True,
) -> Tensor | None:
    """Sum over the positions that a unit occupies in a layer, then the mean over the group's layers.

    Args:
        network: Its weights are scored; biases are not.
        group: The units.
        score: From a layer's weight (positions on the axis, everything else) to (positions,) float64.
        wanted: Which members count.

    Returns:
        (units,) float64, or None where no layer has a weight to score by.
    """
    rows = []
    for member in group.members:
        weight = weight_by_channel(network, member.module, member.axis) if wanted(member) else None
        if weight is not None:
            rows.append(score(weight.cpu())[torch.from_numpy(member.positions)].sum(1))
    return torch.stack(rows).mean(0) if rows else None


def sum_of_squares(weight: Tensor) -> Tensor:
    """Of each position's weights: (positions, everything else) to (positions,) float64."""
    return weight.square().sum(1, dtype=torch.float64)


def with_values(network: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Put one number a weight into the network in place of its weights, so that ``reduce_group`` reads them."""
    for name, parameter in network.named_parameters():
        parameter.data = values[name]
