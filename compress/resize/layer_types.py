"""One table: type of layer -> how its tensors and attributes shrink."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pruneport.compress.resize.attention import narrow_attention
from pruneport.errors import PruningError

__all__ = ["LAYERS", "Keep", "attention_by_channel", "conv_runs", "handler_of", "removed_whole", "select"]

_LEAST_GROUP = 16  # channels; half of them are still a multiple of 8
_Conv = nn.modules.conv._ConvNd
_Transposed = nn.modules.conv._ConvTransposeNd
_BatchNorm = nn.modules.batchnorm._BatchNorm
_InstanceNorm = nn.modules.instancenorm._InstanceNorm
Keep = Mapping[str, Sequence[int]]
"""Axis -> positions kept, ascending."""


@dataclass(frozen=True)
class _Handler:
    """How one layer type shrinks.

    Attributes:
        axes: The axes that can shrink.
        narrow: Shrinks the layer in place.
        by_channel: The weight with the given axis first, or None where the layer has no weight.
    """

    axes: frozenset[str]
    narrow: Callable[..., None]
    by_channel: Callable[..., Tensor | None]


def removed_whole(layer: nn.Module) -> bool:
    """Whether it is a grouped convolution that loses whole channel groups, too narrow to lose channels in each."""
    if not isinstance(layer, _Conv) or isinstance(layer, _Transposed) or not 2 < layer.groups < layer.in_channels:
        return False
    return min(layer.in_channels, layer.out_channels) // layer.groups < _LEAST_GROUP


def handler_of(layer: nn.Module | Tensor) -> _Handler:
    """How a layer shrinks.

    Raises:
        PruningError: Its type cannot be resized.
    """
    for kinds, handler in _HANDLERS:
        if isinstance(layer, kinds):
            return handler
    raise PruningError(f"a {type(layer).__name__} cannot be resized; expected one of {_kinds()}.")


def _kinds() -> str:
    """Names of all types that can shrink, for a message."""
    return ", ".join(kind.__name__.lstrip("_") for kinds, _ in _HANDLERS for kind in kinds)


def select(layer: nn.Module, name: str, dim: int, keep: Sequence[int]) -> None:
    """Keep the given positions along a dimension of a layer's tensor, where it has one of this name."""
    tensor = getattr(layer, name, None)
    if tensor is None:
        return
    chosen = tensor.detach().index_select(dim, torch.as_tensor(keep, dtype=torch.long, device=tensor.device))
    if isinstance(tensor, nn.Parameter):
        chosen = nn.Parameter(chosen, requires_grad=tensor.requires_grad)
    setattr(layer, name, chosen)


def _narrow_conv(layer: nn.Module, keep: Keep) -> None:
    """Convolutions, transposed and grouped ones, and depthwise ones by their channels."""
    assert isinstance(layer, _Conv)
    if "channels" in keep:
        multiplier = layer.out_channels // layer.groups
        rows = keep["channels"]
        if isinstance(layer, _Transposed):  # one row an input, and its outputs in it
            rows = [position // multiplier for position in rows[::multiplier]]
        select(layer, "weight", 0, rows)
        select(layer, "bias", 0, keep["channels"])
        layer.out_channels = len(keep["channels"])
        layer.groups = layer.in_channels = layer.out_channels // multiplier
        return
    transposed = isinstance(layer, _Transposed)
    if "out" in keep:
        for name, parameter in list(layer.named_parameters(recurse=False)):
            if name not in ("weight", "bias") and parameter.shape[0] == layer.out_channels:  # a gain, say
                select(layer, name, 0, keep["out"])
    if "in" in keep:
        if transposed:
            select(layer, "weight", 0, keep["in"])
        elif left := _whole_groups_left(layer, keep["in"]):
            layer.groups = left
        else:
            layer.weight = _second_in_groups(layer, keep["in"], layer.in_channels)
        layer.in_channels = len(keep["in"])
    if "out" in keep:
        if transposed:
            layer.weight = _second_in_groups(layer, keep["out"], layer.out_channels)
        else:
            select(layer, "weight", 0, keep["out"])
        select(layer, "bias", 0, keep["out"])
        layer.out_channels = len(keep["out"])


def _whole_groups_left(layer: nn.modules.conv._ConvNd, keep: Sequence[int]) -> int:
    """How many channel groups are left where some of them lose all their inputs; else 0: each of them loses some."""
    left = len({position * layer.groups // layer.in_channels for position in keep})
    return left if left < layer.groups else 0


def _second_in_groups(layer: nn.modules.conv._ConvNd, keep: Sequence[int], size: int) -> nn.Parameter:
    """The weight with the kept ones of ``size`` positions on its second dimension, which is numbered in each group."""
    width = size // layer.groups
    kept = (torch.as_tensor(keep, dtype=torch.long).reshape(layer.groups, -1) % width).to(layer.weight.device)
    rows = layer.weight.detach().chunk(layer.groups)
    parts = [run.index_select(1, columns) for run, columns in zip(rows, kept.unbind(), strict=True)]
    # On a meta device, which bundles are loaded through, torch imports its compiler to join parts: that takes seconds.
    chosen = parts[0] if len(parts) == 1 else torch.cat(parts)
    return nn.Parameter(chosen, requires_grad=layer.weight.requires_grad)


def conv_runs(layer: nn.modules.conv._ConvNd, axis: str) -> Tensor:
    """A view of the weight: (channel groups, positions on the axis in one group, everything else)."""
    weight = layer.weight.view(layer.groups, -1, *layer.weight.shape[1:])
    first = "in" if isinstance(layer, _Transposed) else "out"
    if axis == "channels":  # one input a group
        return weight if first == "out" else weight.transpose(1, 2)
    return weight if axis == first else weight.transpose(1, 2)


def _conv_by_channel(layer: nn.Module, axis: str) -> Tensor:
    assert isinstance(layer, _Conv)
    return conv_runs(layer, axis).flatten(0, 1)


def _narrow_linear(layer: nn.Module, keep: Keep) -> None:
    """A linear layer by its inputs, its outputs or both."""
    assert isinstance(layer, nn.Linear)
    if "in" in keep:
        select(layer, "weight", 1, keep["in"])
        layer.in_features = len(keep["in"])
    if "out" in keep:
        select(layer, "weight", 0, keep["out"])
        select(layer, "bias", 0, keep["out"])
        layer.out_features = len(keep["out"])


def _linear_by_channel(layer: nn.Module, axis: str) -> Tensor:
    assert isinstance(layer, nn.Linear)
    return layer.weight if axis == "out" else layer.weight.T


def _narrow_norm(width_attribute: str) -> Callable[..., None]:
    """A norm whose width stands in the given attribute."""

    def narrow_norm(layer: nn.Module, keep: Keep) -> None:
        for name in ("weight", "bias", "running_mean", "running_var"):
            select(layer, name, 0, keep["channels"])
        width = len(keep["channels"])
        setattr(layer, width_attribute, (width,) if width_attribute == "normalized_shape" else width)

    return narrow_norm


def _norm_by_channel(layer: nn.Module, axis: str) -> Tensor | None:
    weight = layer.weight
    return weight.unsqueeze(1) if isinstance(weight, Tensor) else None


def _narrow_prelu(layer: nn.Module, keep: Keep) -> None:
    """A PReLU with a slope for each channel; one slope for all stays."""
    assert isinstance(layer, nn.PReLU)
    if layer.num_parameters > 1:
        select(layer, "weight", 0, keep["channels"])
        layer.num_parameters = len(keep["channels"])


def attention_by_channel(layer: nn.Module, axis: str) -> Tensor:
    """The weight of an attention's projections with the given axis first."""
    assert isinstance(layer, nn.MultiheadAttention)
    weight: Tensor = layer.q_proj_weight if layer.in_proj_weight is None else layer.in_proj_weight
    return weight if axis == "channels" else weight.T


_BOTH = frozenset({"channels"})
_HANDLERS: tuple[tuple[tuple[type[nn.Module], ...], _Handler], ...] = (
    ((_Conv,), _Handler(frozenset({"out", "in", "channels"}), _narrow_conv, _conv_by_channel)),
    ((nn.Linear,), _Handler(frozenset({"out", "in"}), _narrow_linear, _linear_by_channel)),
    ((_BatchNorm, _InstanceNorm), _Handler(_BOTH, _narrow_norm("num_features"), _norm_by_channel)),
    ((nn.LayerNorm,), _Handler(_BOTH, _narrow_norm("normalized_shape"), _norm_by_channel)),
    ((nn.GroupNorm,), _Handler(_BOTH, _narrow_norm("num_channels"), _norm_by_channel)),
    ((nn.PReLU,), _Handler(_BOTH, _narrow_prelu, _norm_by_channel)),
    (
        (nn.MultiheadAttention,),
        _Handler(frozenset({"in", "channels"}), narrow_attention, attention_by_channel),
    ),
)
LAYERS: tuple[type[nn.Module], ...] = tuple(kind for kinds, _ in _HANDLERS for kind in kinds)
"""Types that can shrink; the parameters of all other modules are unwrapped."""
