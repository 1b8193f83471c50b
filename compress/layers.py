"""Layers that can be resized: one table of layer type -> how its tensors and attributes shrink."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pruneport.errors import PruningError

__all__ = ["axis_size", "block_count", "narrow", "norm_after", "unsupported", "weight_by_channel"]

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


def narrow(network: nn.Module, name: str, keep: Keep) -> None:
    """Keep only the given positions on each axis of the named layer or parameter, in place.

    Raises:
        PruningError: The layer cannot be resized.
    """
    try:
        layer: nn.Module | nn.Parameter = network.get_submodule(name)
    except AttributeError:
        _narrow_parameter(network, name, keep)
        return
    _handler(layer).narrow(layer, keep)


def weight_by_channel(network: nn.Module, name: str, axis: str) -> Tensor | None:
    """The layer's weight as (positions on the axis, everything else); None where it has none."""
    try:
        layer = network.get_submodule(name)
    except AttributeError:
        parameter = network.get_parameter(name)
        return parameter.detach().movedim(_parameter_dim(parameter), 0).reshape(-1, _width(parameter)).T
    weight = _handler(layer).by_channel(layer, axis)
    return None if weight is None else weight.detach().flatten(1)


def unsupported(layer: nn.Module | nn.Parameter, name: str, axis: str, size: int) -> str:
    """Why this axis cannot shrink, or an empty string."""
    if isinstance(layer, nn.Parameter):
        return "" if _width(layer) == size else f"parameter {name} is not understood"
    kind = type(layer).__name__
    handler = next((entry for kinds, entry in _HANDLERS if isinstance(layer, kinds)), None)
    if handler is None or axis not in handler.axes:
        return f"{name} is a {kind}, which cannot be resized"
    if any(hasattr(layer, hidden) for hidden in ("parametrizations", "weight_g", "weight_orig")):
        return f"{name} has a re-parametrised weight"
    if isinstance(layer, _Conv) and axis != "channels" and layer.groups > 1:
        if layer.groups == layer.in_channels or layer.groups == layer.out_channels:
            return f"{name} is a depthwise convolution with {layer.out_channels // layer.groups} outputs a channel"
        if isinstance(layer, _Transposed):
            return f"{name} is a grouped transposed convolution"
    if isinstance(layer, _Conv) and axis == "channels" and layer.in_channels != layer.out_channels:
        return f"{name} is a depthwise convolution that changes the width"
    return ""


def axis_size(layer: nn.Module | nn.Parameter, axis: str) -> int:
    """Positions on the axis; 0 where the layer has no such axis."""
    if isinstance(layer, nn.Parameter):
        return _width(layer) if axis == "channels" else 0
    if isinstance(layer, _Conv) and axis == "channels":
        return layer.out_channels if layer.groups == layer.in_channels == layer.out_channels else 0
    found = next((size for name in _SIZES.get(axis, ()) if (size := getattr(layer, name, 0))), 0)
    return int(found[-1] if isinstance(found, tuple) else found)


def block_count(layer: nn.Module | nn.Parameter, axis: str) -> int:
    """Equal runs of channels that must keep the same count on this axis."""
    if isinstance(layer, _Conv) and axis != "channels":
        return layer.groups
    if isinstance(layer, nn.GroupNorm):
        return layer.num_groups
    return 1


def norm_after(network: nn.Module, name: str) -> Any:
    """The BatchNorm with statistics that is defined right behind the layer and has its width, or None."""
    owner, _, own = name.rpartition(".")
    siblings = list(network.get_submodule(owner).named_children())
    index = next(number for number, (key, _) in enumerate(siblings) if key == own)
    following = siblings[index + 1][1] if index + 1 < len(siblings) else None
    layer = network.get_submodule(name)
    width = getattr(layer, "out_channels", getattr(layer, "out_features", None))
    if isinstance(following, _BatchNorm) and following.num_features == width:
        return following if following.affine and following.running_mean is not None else None
    return None


def _handler(layer: nn.Module | nn.Parameter) -> _Handler:
    for kinds, handler in _HANDLERS:
        if isinstance(layer, kinds):
            return handler
    raise PruningError(f"a {type(layer).__name__} cannot be resized; expected one of {_kinds()}.")


def _kinds() -> str:
    return ", ".join(kind.__name__.lstrip("_") for kinds, _ in _HANDLERS for kind in kinds)


def _select(layer: nn.Module, name: str, dim: int, keep: Sequence[int]) -> None:
    tensor = getattr(layer, name, None)
    if tensor is None:
        return
    chosen = tensor.detach().index_select(dim, torch.as_tensor(keep, dtype=torch.long, device=tensor.device))
    if isinstance(tensor, nn.Parameter):
        chosen = nn.Parameter(chosen, requires_grad=tensor.requires_grad)
    setattr(layer, name, chosen)


def _narrow_conv(layer: nn.Module, keep: Keep) -> None:
    assert isinstance(layer, _Conv)
    if "channels" in keep:
        _select(layer, "weight", 0, keep["channels"])
        _select(layer, "bias", 0, keep["channels"])
        layer.groups = layer.in_channels = layer.out_channels = len(keep["channels"])
        return
    transposed = isinstance(layer, _Transposed)
    if "in" in keep:
        if layer.groups == 1 or transposed:
            _select(layer, "weight", 0 if transposed else 1, keep["in"])
        else:
            layer.weight = nn.Parameter(_grouped_inputs(layer, keep["in"]), requires_grad=layer.weight.requires_grad)
        layer.in_channels = len(keep["in"])
    if "out" in keep:
        _select(layer, "weight", 1 if transposed else 0, keep["out"])
        _select(layer, "bias", 0, keep["out"])
        layer.out_channels = len(keep["out"])


def _grouped_inputs(layer: nn.modules.conv._ConvNd, keep: Sequence[int]) -> Tensor:
    """Weight (out, in / groups, …) whose rows keep the inputs of their own channel group."""
    width = layer.in_channels // layer.groups
    kept = torch.as_tensor(keep, dtype=torch.long, device=layer.weight.device).reshape(layer.groups, -1) % width
    rows = layer.weight.detach().chunk(layer.groups)
    return torch.cat([run.index_select(1, columns) for run, columns in zip(rows, kept, strict=True)])


def _conv_by_channel(layer: nn.Module, axis: str) -> Tensor:
    assert isinstance(layer, _Conv)
    weight = layer.weight
    if isinstance(layer, _Transposed):
        return weight if axis == "in" else weight.transpose(0, 1)
    if axis != "in":
        return weight
    rows = weight.chunk(layer.groups)
    return torch.cat([run.transpose(0, 1) for run in rows])


def _narrow_linear(layer: nn.Module, keep: Keep) -> None:
    assert isinstance(layer, nn.Linear)
    if "in" in keep:
        _select(layer, "weight", 1, keep["in"])
        layer.in_features = len(keep["in"])
    if "out" in keep:
        _select(layer, "weight", 0, keep["out"])
        _select(layer, "bias", 0, keep["out"])
        layer.out_features = len(keep["out"])


def _linear_by_channel(layer: nn.Module, axis: str) -> Tensor:
    assert isinstance(layer, nn.Linear)
    return layer.weight if axis == "out" else layer.weight.T


def _narrow_norm(width_attribute: str) -> Callable[..., None]:
    def narrow_norm(layer: nn.Module, keep: Keep) -> None:
        for name in ("weight", "bias", "running_mean", "running_var"):
            _select(layer, name, 0, keep["channels"])
        width = len(keep["channels"])
        setattr(layer, width_attribute, (width,) if width_attribute == "normalized_shape" else width)

    return narrow_norm


def _norm_by_channel(layer: nn.Module, axis: str) -> Tensor | None:
    weight = layer.weight
    return weight.unsqueeze(1) if isinstance(weight, Tensor) else None


def _narrow_prelu(layer: nn.Module, keep: Keep) -> None:
    assert isinstance(layer, nn.PReLU)
    if layer.num_parameters > 1:
        _select(layer, "weight", 0, keep["channels"])
        layer.num_parameters = len(keep["channels"])


def _parameter_dim(parameter: Tensor) -> int:
    """A bare parameter (a layer scale, say) has its channels on its last dimension longer than one."""
    return max((dim for dim, size in enumerate(parameter.shape) if size > 1), default=0)


def _width(parameter: Tensor) -> int:
    return parameter.shape[_parameter_dim(parameter)] if parameter.ndim else 1


def _narrow_parameter(network: nn.Module, name: str, keep: Keep) -> None:
    owner, _, attribute = name.rpartition(".")
    module = network.get_submodule(owner)
    _select(module, attribute, _parameter_dim(getattr(module, attribute)), keep["channels"])


_SIZES = {
    "in": ("in_channels", "in_features"),
    "out": ("out_channels", "out_features"),
    "channels": ("num_features", "num_channels", "normalized_shape", "num_parameters"),
}
_BOTH = frozenset({"channels"})
_HANDLERS: tuple[tuple[tuple[type[nn.Module], ...], _Handler], ...] = (
    ((_Conv,), _Handler(frozenset({"out", "in", "channels"}), _narrow_conv, _conv_by_channel)),
    ((nn.Linear,), _Handler(frozenset({"out", "in"}), _narrow_linear, _linear_by_channel)),
    ((_BatchNorm, _InstanceNorm), _Handler(_BOTH, _narrow_norm("num_features"), _norm_by_channel)),
    ((nn.LayerNorm,), _Handler(_BOTH, _narrow_norm("normalized_shape"), _norm_by_channel)),
    ((nn.GroupNorm,), _Handler(_BOTH, _narrow_norm("num_channels"), _norm_by_channel)),
    ((nn.PReLU,), _Handler(_BOTH, _narrow_prelu, _norm_by_channel)),
)
