"""What many tests build small networks from, and what they compare them by."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pruneport.compress.surgery.plan import Plan

__all__ = ["Net", "conv", "parameter", "pooled", "randomise_norms", "same_state", "zeroed"]


class Net(nn.Module):
    """Layers and parameters by name, and a forward function that uses them."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def conv(inputs: int, outputs: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    """A convolution that keeps the size."""
    return nn.Conv2d(inputs, outputs, kernel, **{"padding": kernel // 2, **options})


def parameter(*shape: int) -> nn.Parameter:
    """Random entries about one."""
    return nn.Parameter(torch.rand(*shape) + 0.5)


def pooled(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B, C)."""
    return x.mean((2, 3))


def randomise_norms(
    network: nn.Module,
    shift: float = 0.2,
    gains: tuple[float, float] = (0.5, 1.5),
    variances: tuple[float, float] = (0.5, 1.5),
) -> None:
    """BatchNorms that do something: fresh ones pass everything through, so that a wrong channel would not show."""
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, *gains)
            nn.init.normal_(norm.bias, 0, shift)
            nn.init.normal_(norm.running_mean, 0, shift)  # type: ignore[arg-type]
            nn.init.uniform_(norm.running_var, *variances)  # type: ignore[arg-type]


def same_state(one: nn.Module, other: nn.Module) -> bool:
    """Whether two networks have the same tensors, bit for bit."""
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def zeroed(dense: nn.Module, plan: Plan, only_inputs: bool = False) -> nn.Module:
    """A copy of the dense network with zeros in all weights that the plan removes: what pruning must be equal to.

    It shares nothing with the code that shrinks layers. ``only_inputs`` zeroes no more than the weights that read
    removed channels, so that these may hold anything.
    """
    network = copy.deepcopy(dense)
    for group in plan.groups:
        removed = sorted(set(range(group.width)) - set(group.kept or range(group.width)))
        for member in group.members if removed else ():
            if not only_inputs or member.axis == "in":
                _zero(network, member.module, member.axis, member.positions[removed].ravel().tolist())
    return network


@torch.no_grad()
def _zero(network: nn.Module, name: str, axis: str, gone: list[int]) -> None:
    owner, _, attribute = name.rpartition(".")
    part: Any = getattr(network.get_submodule(owner), attribute)
    if isinstance(part, Tensor):
        part.data.index_fill_(int(axis[-1]), torch.tensor(gone), 0)
        return
    if isinstance(part, nn.MultiheadAttention):
        part.in_proj_weight[gone] = 0
        part.in_proj_bias[gone] = 0
        return
    if nn.utils.parametrize.is_parametrized(part):
        plain = nn.Conv2d(part.in_channels, part.out_channels, 3, padding=1, dtype=part.weight.dtype)
        plain.weight.data, plain.bias = part.weight.detach(), part.bias
        setattr(network.get_submodule(owner), attribute, part := plain)
    weight = part.weight.data
    if axis == "in":
        for position in gone:
            if isinstance(part, nn.ConvTranspose2d):
                weight[position] = 0
            elif isinstance(part, nn.Conv2d):
                inputs, outputs = part.in_channels // part.groups, part.out_channels // part.groups
                run = position // inputs
                weight[run * outputs : (run + 1) * outputs, position % inputs] = 0
            else:
                weight[:, position] = 0
        return
    weight.index_fill_(1 if isinstance(part, nn.ConvTranspose2d) else 0, torch.tensor(gone), 0)
    if part.bias is not None:
        part.bias[gone] = 0
