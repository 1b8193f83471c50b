"""The layers that read a group, as least-squares problems: what it costs them to lose inputs, and how they make up.

A consumer computes ``weight.T @ x``. With the covariance of x on calibration inputs, removing some of its inputs
and changing the other weights as well as can be changes its output by a known amount: the quadratic form of
optimal brain surgery (Hassibi & Stork 1992), whose Hessian is that covariance. A change of the mean is made up by
the bias, or the norm behind, so only the covariance counts; where there is neither, the second moment does.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pruneport.compress.activations.calibration import Batches
from pruneport.compress.activations.cuts import find_cuts
from pruneport.compress.activations.least_squares import (
    Equations,
    add_ridge,
    by_place,
    chosen_places,
    float64_device,
    input_rows,
    is_plain,
    ridge_of,
)
from pruneport.compress.activations.replay import Replay
from pruneport.compress.graph.groups import Group
from pruneport.compress.group_records import Member
from pruneport.compress.hooks import calls_recorded, hooks_restored, norms_recorded
from pruneport.compress.resize.layers import weight_by_channel
from pruneport.models.inputs import changed, rows_of_inputs, run_on

__all__ = ["Consumer", "unseen", "visit_consumers"]

_ROWS = 100_000
_MOST_BYTES = 2**29  # of statistics that are held together


@dataclass(frozen=True, kw_only=True)
class Consumer:
    """One layer that reads a group.

    Attributes:
        name: The layer.
        columns: (units, n): which inputs of ``weight`` each unit of the group is.
        weight: (inputs, outputs), float64; each kernel position of each channel is an input. Of a layer that is
            not plain (see ``is_plain``): (channels, 1), the root of each channel's sum of squares.
        covariance: Of the inputs, with a ridge: (inputs, inputs), zero between channel groups of a convolution;
            only the diagonal (inputs,) where the layer is not plain, so that nothing can make up for a lost input.
            About zero where the layer has nothing to make up for a change of the mean.
        mean: Of the inputs, (inputs,); zero where the covariance is about zero.
        importance: (outputs,): what a squared error of each output weighs. With a BatchNorm behind, its squared
            gain; else one over the mean variance of the outputs.
    """

    name: str
    columns: Tensor
    weight: Tensor
    covariance: Tensor
    mean: Tensor
    importance: Tensor

    @property
    def plain(self) -> bool:
        """Whether the weights left can make up for inputs removed."""
        return self.covariance.ndim == 2

    def compensated(self, removed: Sequence[int]) -> Tensor:
        """The weight with zeros at the units removed, the others solved anew so that the outputs change least."""
        lost = self.columns[torch.as_tensor(removed, dtype=torch.long)].flatten()
        weight = self.weight.clone()
        weight[lost] = 0
        left = torch.ones(len(weight), dtype=torch.bool)
        left[lost] = False
        if self.plain and bool(left.any()):
            factor = torch.linalg.cholesky(self.covariance[left][:, left])
            weight[left] += torch.cholesky_solve(self.covariance[left][:, lost] @ self.weight[lost], factor)
        return weight

    def error(self, weight: Tensor) -> float:
        """Weighted squared error of the outputs with another weight."""
        change = weight - self.weight
        spread = self.covariance @ change if self.plain else self.covariance[:, None] * change
        return float((spread * change).sum(0) @ self.importance)


def visit_consumers(
    network: nn.Module, groups: Sequence[Group], wanted: Sequence[int], batches: Batches
) -> Iterator[tuple[int, list[Consumer], Replay]]:
    """Yield the wanted groups one by one, in the order in which the network runs their consumers.

    The statistics of groups that are read between the same cuts are summed up in the same passes, and held together.

    Args:
        network: The dense network; it is only run.
        groups: Its groups.
        wanted: Indices of those to visit.
        batches: Inputs.

    Yields:
        The group's index, its consumers, as far as they are seen to run, and a replay of the network from before the
        first of them; where removal is ``unseen`` by them, from before the group is made.
    """
    example = rows_of_inputs(batches[0](), slice(2))
    with calls_recorded(network) as calls, norms_recorded(network) as norms, torch.no_grad():
        run_on(network, changed(example, Tensor.clone))
    place = {name: index for index, name in reversed(list(enumerate(calls)))}
    readers = {index: [m for m in groups[index].members if m.axis == "in" and m.module in place] for index in wanted}

    def when(member: Member) -> int:
        name = member.module
        while name not in place:  # a parameter, or a layer whose weights another module takes
            name = name.rpartition(".")[0]
        return place[name]

    first = {
        index: min(groups[index].members if unseen(groups[index], found) else found, key=when)
        for index, found in readers.items()
    }
    order = sorted(wanted, key=lambda i: when(first[i]))
    with Replay(network, find_cuts(network, example), batches) as replay:
        sizes = [sum(_bytes_of(network, member) for member in readers[index]) for index in order]
        divided = replay.runs([first[index].module for index in order], sizes, _MOST_BYTES)
        runs = [[order[place] for place in run] for run in divided]
        for run, after in itertools.zip_longest(runs, runs[1:]):
            replay.advance(first[run[0]].module)
            members = [member for index in run for member in readers[index]]
            watched = _watch(replay, members, calls, ahead=first[after[0]].module if after else "")
            for done, index in enumerate(run, start=1):
                consumers = [_consumer(network, m, watched[m.module], norms.get(m.module)) for m in readers[index]]
                later = {member.module for other in run[done:] for member in readers[other]}
                watched = {name: inputs for name, inputs in watched.items() if name in later}
                yield index, consumers, replay


def unseen(group: Group, consumers: Sequence[Any]) -> bool:
    """Whether removing units does what the group's consumers do not see.

    None of them runs as a module (``nn.MultiheadAttention`` takes its projection's weights), or there is none (queries
    and keys end in a product), or some layer makes several channels of a unit (a query, a key and a value, say).
    """
    return not consumers or any(m.axis in ("out", "channels") and m.positions.shape[1] > 1 for m in group.members)


class _Inputs:
    """Sums up what a layer reads."""

    def __init__(self, layer: Any, channels: int, batches: int, device: torch.device) -> None:
        self.layer = layer
        self.plain = is_plain(layer)
        self._generator = torch.Generator().manual_seed(0)
        self._limit = _ROWS // batches
        self._device = float64_device(device)
        self.equations = Equations(_unknowns(layer, channels), 0, device)
        self.sums = torch.zeros(3, 0 if self.plain else channels, dtype=torch.float64, device=self._device)

    def add(self, layer: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        """A forward hook."""
        inputs = arguments[0].detach()
        if self.plain:
            places = chosen_places(layer, output, self._limit, self._generator)
            rows = input_rows(layer, inputs, output.shape[2:], places)
            self.equations.add(rows, rows[:, :0])
            return
        flat = by_place(layer, inputs).to(self._device).double()
        self.sums += torch.stack([flat.sum(0), flat.square().sum(0), torch.ones_like(flat[0]) * len(flat)])

    def moments(self) -> tuple[Tensor, Tensor]:
        """Covariance, or only its diagonal, and mean."""
        if self.plain:
            return self.equations.moments()
        mean = self.sums[0] / self.sums[2]
        return (self.sums[1] / self.sums[2] - mean.square()).clamp_min(0), mean


def _unknowns(layer: Any, channels: int) -> int:
    """Inputs of one output of a plain layer; none of another, of which only sums are kept."""
    if not is_plain(layer):
        return 0
    return channels if isinstance(layer, nn.Linear) else channels * math.prod(layer.kernel_size)


def _bytes_of(network: nn.Module, member: Member) -> int:
    """Of the equations of what a layer reads."""
    return _unknowns(network.get_submodule(member.module), member.size) ** 2 * 8


def _watch(replay: Replay, readers: Sequence[Member], calls: Sequence[str], ahead: str) -> dict[str, _Inputs]:
    """Run the batches, and sum up what the layers read; ``ahead`` as of ``Replay.passes``."""
    network = replay.network
    watched = {m.module: _Inputs(network.get_submodule(m.module), m.size, len(replay), replay.device) for m in readers}
    order = [name for name in calls if name in watched]
    ended: list[str] = []

    def end(layer: nn.Module, arguments: Any, output: Any) -> None:
        ended.append(order[-1])
        replay.stop()

    with hooks_restored(network):
        for name, inputs in watched.items():
            network.get_submodule(name).register_forward_hook(inputs.add)
        if len(order) == len(watched) > 0:  # none is called twice
            network.get_submodule(order[-1]).register_forward_hook(end)
        for _ in replay.passes(ahead=ahead, seen=lambda: bool(ended)) if watched else ():
            ended.clear()
    return watched


def _consumer(network: nn.Module, member: Member, inputs: _Inputs, norm: Any) -> Consumer:
    """One consumer: weights, covariance and mean of its inputs, and what an error in its outputs counts."""
    covariance, mean = inputs.moments()
    positions = torch.from_numpy(member.positions)
    if inputs.plain:
        weight = _dense_weight(inputs.layer, covariance.device)
        kernel = len(weight) // member.size
        columns = (positions[:, :, None] * kernel + torch.arange(kernel)).flatten(1)
        within = _same_channel_group(inputs.layer, kernel, weight.device)
        covariance = covariance * within
        variance = ((covariance @ weight) * weight).sum(0)
        if inputs.layer.bias is None and norm is None:
            covariance, mean = covariance + within * mean.outer(mean), mean * 0
        add_ridge(covariance, ridge_of(inputs.layer.weight[0].numel(), inputs.equations.rows))
    else:
        by_channel = weight_by_channel(network, member.module, "in")
        assert by_channel is not None
        weight = by_channel.to(covariance.device).double().square().sum(1, keepdim=True).sqrt()
        columns = positions
        variance = (covariance[:, None] * weight.square()).sum(0)
    return Consumer(
        name=member.module,
        columns=columns,
        weight=weight,
        covariance=covariance,
        mean=mean,
        importance=_importance(norm if inputs.plain else None, variance),
    )


def _importance(norm: Any, variance: Tensor) -> Tensor:
    """What a squared error in each output counts: the next norm's gain, else one for all."""
    if norm is None:
        return torch.full_like(variance, 1 / float(variance.mean().clamp_min(1e-12)))
    weight, spread = (tensor.detach().to(variance.device).double() for tensor in (norm.weight, norm.running_var))
    gain: Tensor = weight.square() / (spread + norm.eps)
    return gain


def _dense_weight(layer: Any, device: torch.device) -> Tensor:
    """(inputs, outputs) in float64; a grouped convolution's with zeros where it reads nothing."""
    weight = layer.weight.detach().to(device).double()
    groups = getattr(layer, "groups", 1)
    if groups == 1:
        flat: Tensor = weight.flatten(1).T.contiguous()
        return flat
    blocks: Tensor = torch.block_diag(*[run.flatten(1).T for run in weight.chunk(groups)])  # type: ignore[no-untyped-call]
    return blocks


def _same_channel_group(layer: Any, kernel: int, device: torch.device) -> Tensor | float:
    """1 where two inputs are of the same channel group, else 0."""
    groups = getattr(layer, "groups", 1)
    if groups == 1:
        return 1.0
    owner = torch.from_numpy(np.repeat(np.arange(groups), layer.in_channels // groups * kernel))
    return (owner[:, None] == owner).double().to(device)
