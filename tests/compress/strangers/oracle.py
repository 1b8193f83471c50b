"""What a pruned network must compute: the dense network's own forward, in which what was removed is absent.

NaN marks an absent entry. Parameters of removed units are filled with NaN, which then goes wherever these channels go:
all that works entry by entry passes it on. The few operations that add up, average or compare entries leave absent ones
out (see ``absent``). So a norm averages over the channels that are left, a softmax shares out among them, and what
takes a size from a shape, such as the scale of an attention, takes that of the dense network. Nothing of pruneport is
used.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .absent import Absent

__all__ = ["Removed", "expected_outputs"]

Removed = tuple[str, str, int, list[int]]
"""Name of a layer or parameter, its axis as plan.json writes it, the size of that axis, and the places removed."""


def expected_outputs(dense: nn.Module, removed: Iterable[Removed], inputs: Tensor) -> Any:
    """Run a copy of ``dense``, in float64, on ``inputs`` (B, C, H, W) without the removed channels."""
    network = _untied(dense).double()
    folded: set[str] = set()
    for name, axis, size, places in removed:
        _mark(network, name, axis, size, places, folded)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its one operation shows nothing of what is inside
    try:
        with torch.no_grad(), Absent():
            return network(inputs.double())
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _untied(dense: nn.Module) -> nn.Module:
    """A copy whose layers share no parameter: each loses what the plan says of it."""
    network, seen = copy.deepcopy(dense), set()
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter in seen:
                setattr(module, name, nn.Parameter(parameter.detach().clone(), parameter.requires_grad))
            seen.add(parameter)
    return network


def _mark(network: nn.Module, name: str, axis: str, size: int, places: Sequence[int], folded: set[str]) -> None:
    owner, _, attribute = name.rpartition(".")
    part: Any = getattr(network.get_submodule(owner), attribute)
    if isinstance(part, Tensor):
        dim = int(axis.removeprefix("dim"))
        assert part.shape[dim] == size, f"the plan has {size} places on {name}, dimension {dim}, of {tuple(part.shape)}"
        part.data.index_fill_(dim, torch.tensor(places), math.nan)
        return
    if name not in folded:
        folded.add(name)
        _fold(part)
    if isinstance(part, nn.MultiheadAttention):
        _mark_attention(part, axis, places)
    elif isinstance(part, nn.modules.conv._ConvNd) or axis == "in":
        _mark_weight(part, axis, size, places)
    else:
        for key, tensor in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]:
            if tensor.is_floating_point() and tensor.ndim and not key.startswith("_"):
                assert len(tensor) == size, (
                    f"the plan has {size} places on {name}, whose {key} is {tuple(tensor.shape)}"
                )
                tensor.data[places] = math.nan


def _mark_attention(layer: nn.MultiheadAttention, axis: str, places: Sequence[int]) -> None:
    """Rows of the three projections, one behind the other, or columns: of all of them, or of the queries' own."""
    if axis == "in":
        weight = layer.q_proj_weight if layer.in_proj_weight is None else layer.in_proj_weight
        weight.data[:, places] = math.nan
        return
    separate = (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)
    for place in places:
        if layer.in_proj_weight is None:
            separate[place // layer.embed_dim].data[place % layer.embed_dim] = math.nan
        else:
            layer.in_proj_weight.data[place] = math.nan
        if layer.in_proj_bias is not None:
            layer.in_proj_bias.data[place] = math.nan


def _mark_weight(layer: Any, axis: str, size: int, places: Sequence[int]) -> None:
    """Rows or columns of a linear layer, a convolution or a transposed one, with channel groups or without."""
    weight, groups = layer.weight.data, getattr(layer, "groups", 1)
    transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
    whole = axis in ("in" if transposed else "out", "channels")  # the axis that lies on dimension 0 for all groups
    width = size // groups
    for place in places:
        if whole and not (transposed and axis == "channels"):
            weight[place] = math.nan
        elif transposed:
            weight[place // width * (len(weight) // groups) : (place // width + 1) * (len(weight) // groups)][
                :, place % width
            ] = math.nan
        else:
            rows = len(weight) // groups
            weight[place // width * rows : (place // width + 1) * rows, place % width] = math.nan
    if axis != "in":
        for key, tensor in layer.named_parameters(recurse=False):
            if key != "weight" and tensor.shape[0] == size:  # the bias, or a gain
                tensor.data[places] = math.nan


def _fold(layer: Any) -> None:
    """Make a weight that is computed from others (weight norm, spectral norm) a plain one of the same value."""
    if nn.utils.parametrize.is_parametrized(layer):
        values = {name: getattr(layer, name).detach() for name in layer.parametrizations}
        del layer.parametrizations
        layer.__class__ = type(layer).__mro__[1]  # this copy's alone, where torch changes the class of all copies
        for name, value in values.items():
            layer.register_parameter(name, nn.Parameter(value))
    if nn.utils.prune.is_pruned(layer):
        for name in [name.removesuffix("_mask") for name, _ in layer.named_buffers() if name.endswith("_mask")]:
            nn.utils.prune.remove(layer, name)
    for attribute, remove in (
        ("weight_g", nn.utils.remove_weight_norm),
        ("weight_orig", nn.utils.remove_spectral_norm),
    ):
        if hasattr(layer, attribute):
            remove(layer)
