"""Block-Hessian scores: units removed one after the other, each time the one that is missed least.

We define the structured form of the second-order block criterion (arXiv 2509.24066 has it for single weights):
the Hessian block of a unit is that of its consumers' squared output error, removal is jointly optimal brain
surgery on that block, and what is left makes up for it before the next unit is chosen.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pruneport.compress.graph.groups import Group
from pruneport.compress.importance.consumers import Consumer
from pruneport.compress.importance.group_scores import reduce_group, sum_of_squares

__all__ = ["removal_errors", "unit_errors", "weight_shares"]

_STEPS = 128  # wide groups lose several units a step


def unit_errors(network: nn.Module, group: Group, consumers: Sequence[Consumer]) -> Tensor:
    """Score the units of a group by when they go: by ``removal_errors``, or by their weights if no consumer is seen.

    Returns:
        (width,) float64: what is lost once the unit is gone with all that went before it.
    """
    if consumers:
        return removal_errors(consumers, group.width)
    shares = weight_shares(network, group)
    order = shares.argsort(stable=True)
    errors = torch.empty_like(shares)
    errors[order] = shares[order].cumsum(0)
    return errors


def weight_shares(network: nn.Module, group: Group) -> Tensor:
    """What each unit is taken to weigh where no layer is seen to read the group: its share of the squared weights.

    We define: times the channels that the group has in the layer where it has fewest, since the ``removal_errors`` of
    a whole group come to about one an output.

    Returns:
        (width,) float64.
    """
    squares = reduce_group(network, group, sum_of_squares)
    if squares is None or not squares.any():
        squares = torch.ones(group.width, dtype=torch.float64)
    return squares / squares.sum() * min(member.positions.size for member in group.members)


def removal_errors(consumers: Sequence[Consumer], width: int) -> Tensor:
    """Score the units of one group by when they go.

    The unit u whose loss tr(W_u' [H^-1_uu]^-1 W_u), summed over the consumers, is least is removed; W and H^-1 are
    updated to what is left (Hassibi & Stork 1992, with all inputs of a unit at once).

    Args:
        consumers: The layers that read the group.
        width: Units of the group.

    Returns:
        (width,) float64: the consumers' summed weighted squared error once the unit is gone with all that went
        before it; a unit that is never read scores zero.
    """
    surgeries = [_Surgery(consumer, width) for consumer in consumers]
    left = torch.ones(width, dtype=torch.bool)
    errors = torch.zeros(width, dtype=torch.float64)
    total, step = 0.0, max(1, width // _STEPS)
    while bool(left.any()):
        losses = sum((surgery.losses(left) for surgery in surgeries), torch.zeros(width, dtype=torch.float64))
        losses[~left] = torch.inf
        gone = losses.argsort(stable=True)[: min(step, int(left.sum()))]
        left[gone] = False
        total += sum(surgery.remove(gone, left) for surgery in surgeries)
        errors[gone] = total + losses[gone] * 1e-9  # within a step, in their own order
    return errors


class _Surgery:
    """The inverse Hessian and the weights of one consumer, restricted to the group's inputs, while units go."""

    def __init__(self, consumer: Consumer, width: int) -> None:
        self._size = consumer.columns.shape[1]
        flat = consumer.columns.flatten()
        self._weight = (consumer.weight * consumer.importance.sqrt())[flat]
        self._units = torch.arange(width)  # units that self._inverse still holds, in order
        if consumer.plain:
            covariance = consumer.covariance[flat][:, flat]
            self._inverse = torch.cholesky_inverse(torch.linalg.cholesky(covariance))
        else:
            self._inverse = torch.diag(1 / consumer.covariance[flat].clamp_min(1e-12))

    def losses(self, left: Tensor) -> Tensor:
        held, size = len(self._units), self._size
        blocks = self._inverse.reshape(held, size, held, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        weight = self._weight.reshape(held, size, -1)
        losses = torch.zeros(len(left), dtype=torch.float64)
        alive = left[self._units]
        solved = torch.linalg.solve(blocks[alive], weight[alive])
        losses[self._units[alive]] = (weight[alive] * solved).sum((1, 2)).cpu()
        return losses

    def remove(self, gone: Tensor, left: Tensor) -> float:
        """Take the units away, let the others make up for them, and return the error that remains."""
        places = torch.searchsorted(self._units, gone.sort().values)
        lost = (places[:, None] * self._size + torch.arange(self._size)).flatten()
        rows = self._inverse[lost]
        block, weight = rows[:, lost].clone(), self._weight[lost].clone()
        solved = torch.linalg.solve(block, weight)
        self._weight.addmm_(rows.T, solved, alpha=-1)
        self._inverse.addmm_(rows.T, torch.linalg.solve(block, rows), alpha=-1)
        alive = left[self._units]
        if int(alive.sum()) <= len(alive) // 2:  # the rest is only carried along until it is half
            keep = alive.repeat_interleave(self._size)
            self._inverse, self._weight = self._inverse[keep][:, keep].clone(), self._weight[keep]
            self._units = self._units[alive]
        return float((weight * solved).sum())
