"""What dropping each residual branch costs, measured one branch at a time."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pruneport.compress.activations.calibration import Batches
from pruneport.compress.graph.branches import Branch, branches_changed
from pruneport.compress.graph.groups import Group
from pruneport.compress.graph.tracing.dataflow import TracedBranch
from pruneport.compress.importance.consumers import visit_consumers
from pruneport.compress.importance.obs import weight_shares
from pruneport.compress.importance.sensitivity import INPUTS, relative_error
from pruneport.models.inputs import batch_of, run_on
from pruneport.models.outputs import main_output
from pruneport.progress import Progress, Step, silent

__all__ = ["measure_drops"]


def measure_drops(
    network: nn.Module,
    groups: Sequence[Group],
    branches: Sequence[Branch],
    order: Mapping[str, int],
    batches: Batches,
    progress: Progress = silent,
) -> dict[str, float]:
    """Drop each branch alone, and compare the outputs.

    As ``Curve.damage`` of a width, it is the geometric mean of two errors, and goes on from the curve of the group that
    the branch's last layer reads: the local error is that layer's once it has lost all its inputs. For the output error
    the branch adds its mean on the inputs, channel by channel: biases and norms behind it make up for that.

    Args:
        network: The dense network; it is only read and copied.
        groups: Its groups.
        branches: Those that may be dropped.
        order: Place of each module in the order of execution.
        batches: Inputs.
        progress: Told which branch is being measured.

    Returns:
        The damage by the branch's name.
    """
    last = {max(branch.groups, key=lambda index: _end(groups[index], order)): branch for branch in branches}
    if not last:
        return {}
    network = copy.deepcopy(network)
    with torch.inference_mode():
        limit = max(1, INPUTS // batch_of(batches[0]()))
        dense = [main_output(run_on(network, load())).cpu() for load in batches[:limit]]
    damage: dict[str, float] = {}
    for number, (index, consumers, replay) in enumerate(visit_consumers(network, groups, list(last), batches)):
        branch = last[index]
        progress(Step(f"measuring branch {number + 1} of {len(last)}: {branch.name}", number, len(last)))
        if consumers:
            local = sum(consumer.error(torch.zeros_like(consumer.weight)) for consumer in consumers)
        else:
            local = float(weight_shares(network, groups[index]).sum())
        with branches_changed(network, [branch.traced], _held_at_mean):
            outputs = [main_output(output).cpu() for output in replay.passes(limit)]
        damage[branch.name] = math.sqrt(local * relative_error(dense, outputs))
    return damage


def _end(group: Group, order: Mapping[str, int]) -> int:
    """When the last layer that reads the group runs; that makes it, where none is seen."""
    return max(order.get(name, -1) for name in group.consumers or (group.name,))


def _held_at_mean(branch: TracedBranch, computed: Tensor) -> Tensor:
    """The mean of each channel; zeros where it is not known along which dimension channels lie."""
    if branch.channel_dim is None:
        return torch.zeros_like(computed)
    others = [dim for dim in range(computed.ndim) if dim != branch.channel_dim]
    return computed.mean(others, keepdim=True).expand_as(computed)
