"""Layers that can be resized: one table of layer type -> how its tensors and attributes shrink."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.spectral_norm import SpectralNormLoadStateDictPreHook

from pruneport.compress.resize.attention import narrow_attention
from pruneport.errors import PruningError

__all__ = [
    "LAYERS",
    "axis_size",
    "block_count",
    "narrow",
    "parts_by_name",
    "removed_whole",
    "ties_kept",
    "unwrapped_tensor",
    "weight_by_channel",
    "zero_channels",
]

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


def narrow(network: nn.Module, name: str, keep: Keep) -> None:
    """Keep only the given positions on each axis of the named layer or parameter, in place.

    Raises:
        PruningError: The layer cannot be resized.
    """
    try:
        layer = network.get_submodule(name)
    except AttributeError:
        _narrow_bare(network, name, keep)
        return
    _fold(layer)
    _handler(layer).narrow(layer, keep)


@contextmanager
def ties_kept(network: nn.Module, keep: Mapping[str, Keep]) -> Iterator[None]:
    """One parameter under several names is one again after its layers shrink, where they keep the same positions.

    Args:
        network: Its layers are shrunk in the block.
        keep: What each layer or parameter keeps.
    """
    names: dict[int, list[str]] = defaultdict(list)
    before = dict(network.named_parameters(remove_duplicate=False))
    for name, parameter in before.items():
        names[id(parameter)].append(name)
    yield
    for tied in names.values():
        changed = [name for name in tied if _parameter(network, name) is not before[name]] if len(tied) > 1 else []
        for name in tied if changed else ():
            if _kept_of(name, keep) in (_kept_of(changed[0], keep), None):
                owner, _, attribute = name.rpartition(".")
                setattr(network.get_submodule(owner), attribute, _parameter(network, changed[0]))


def _parameter(network: nn.Module, name: str) -> Any:
    owner, _, attribute = name.rpartition(".")
    return getattr(network.get_submodule(owner), attribute, None)


def _kept_of(name: str, keep: Mapping[str, Keep]) -> Keep | None:
    """What the parameter's layer keeps, or the parameter where no layer owns it; None where neither shrinks."""
    return keep.get(name.rpartition(".")[0], keep.get(name))


def zero_channels(network: nn.Module, name: str, keep: Keep) -> None:
    """Zero all that ``narrow`` would remove of weights and biases, in place; running statistics stay."""
    try:
        layer: Any = network.get_submodule(name)
    except AttributeError:
        tensor = unwrapped_tensor(network, name)
        for axis, kept in keep.items():
            tensor.data[
                (slice(None),) * _DIMENSIONS.index(axis) + (_lost(tensor.shape[_DIMENSIONS.index(axis)], kept),)
            ] = 0
        return
    _fold(layer)
    for axis, kept in keep.items():
        lost = _lost(axis_size(layer, axis), kept)
        if isinstance(layer, _Conv):
            runs = _conv_runs(layer, axis)
            runs[lost.reshape(runs.shape[:2])] = 0
        elif (by_channel := _handler(layer).by_channel(layer, axis)) is not None:  # a view
            by_channel[lost] = 0
        bias = getattr(layer, "in_proj_bias" if isinstance(layer, nn.MultiheadAttention) else "bias", None)
        if axis != "in" and bias is not None:
            bias[lost] = 0


def _fold(layer: nn.Module) -> None:
    """Make a weight that is computed from others (weight norm, spectral norm) a plain one, of the present value."""
    if is_parametrized(layer):  # torch's own way takes the property away from all copies of the layer
        values = {name: getattr(layer, name).detach() for name in layer.parametrizations}  # type: ignore[union-attr]
        del layer.parametrizations
        layer.__class__ = type(layer).__bases__[0]
        for name, value in values.items():
            layer.register_parameter(name, nn.Parameter(value))
    if hasattr(layer, "weight_g"):
        remove_weight_norm(layer)
    if prune.is_pruned(layer):  # by torch's own masks
        for method in [hook for hook in layer._forward_pre_hooks.values() if isinstance(hook, prune.BasePruningMethod)]:
            prune.remove(layer, method._tensor_name)  # type: ignore[no-untyped-call]
    elif hasattr(layer, "weight_orig"):
        remove_spectral_norm(layer)
        hooks = layer._load_state_dict_pre_hooks  # torch leaves its own there, wrapped
        for key in [
            key for key, hook in hooks.items() if isinstance(_unwrapped(hook), SpectralNormLoadStateDictPreHook)
        ]:
            del hooks[key]


def _unwrapped(hook: Any) -> Any:
    return getattr(hook, "hook", hook)


def _lost(size: int, kept: Sequence[int]) -> Tensor:
    lost = torch.ones(size, dtype=torch.bool)
    lost[list(kept)] = False
    return lost


def weight_by_channel(network: nn.Module, name: str, axis: str) -> Tensor | None:
    """The layer's weight as (positions on the axis, everything else); None where it has none."""
    try:
        layer = network.get_submodule(name)
    except AttributeError:
        tensor = unwrapped_tensor(network, name).detach().movedim(_DIMENSIONS.index(axis), 0)
        return tensor.reshape(len(tensor), -1)
    weight = _handler(layer).by_channel(layer, axis)
    return None if weight is None else weight.detach().flatten(1)


def parts_by_name(network: nn.Module) -> dict[str, nn.Module | Tensor]:
    """All that a member of a group can name: modules, parameters and buffers."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers()), **dict(network.named_modules())}


def axis_size(layer: nn.Module | Tensor, axis: str) -> int:
    """Positions on the axis; 0 where the layer has no such axis."""
    if isinstance(layer, Tensor):
        sizes = dict(zip(_DIMENSIONS, layer.shape, strict=False))
        return sizes.get(axis, 0)
    if isinstance(layer, nn.MultiheadAttention):
        parts = 1 if "in_proj_weight" in layer._parameters and layer._parameters["in_proj_weight"] is not None else 3
        return len(_attention_by_channel(layer, axis)) * (parts if axis == "channels" else 1)
    if isinstance(layer, _Conv) and axis == "channels":
        return layer.out_channels if 1 < layer.groups == layer.in_channels else 0
    found = next((size for name in _SIZES.get(axis, ()) if (size := getattr(layer, name, 0))), 0)
    return int(found[-1] if isinstance(found, tuple) else found)


def removed_whole(layer: nn.Module) -> bool:
    """Whether it is a grouped convolution that loses whole channel groups, too narrow to lose channels in each."""
    if not isinstance(layer, _Conv) or isinstance(layer, _Transposed) or not 2 < layer.groups < layer.in_channels:
        return False
    return min(layer.in_channels, layer.out_channels) // layer.groups < _LEAST_GROUP


def block_count(layer: nn.Module | Tensor, axis: str) -> int:
    """Equal runs of channels that must keep the same count on this axis."""
    if isinstance(layer, _Conv) and axis != "channels":
        return 1 if removed_whole(layer) else layer.groups
    if isinstance(layer, nn.GroupNorm):
        return layer.num_groups
    return 1


def _handler(layer: nn.Module | Tensor) -> _Handler:
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
        multiplier = layer.out_channels // layer.groups
        rows = keep["channels"]
        if isinstance(layer, _Transposed):  # one row an input, and its outputs in it
            rows = [position // multiplier for position in rows[::multiplier]]
        _select(layer, "weight", 0, rows)
        _select(layer, "bias", 0, keep["channels"])
        layer.out_channels = len(keep["channels"])
        layer.groups = layer.in_channels = layer.out_channels // multiplier
        return
    transposed = isinstance(layer, _Transposed)
    if "out" in keep:
        for name, parameter in list(layer.named_parameters(recurse=False)):
            if name not in ("weight", "bias") and parameter.shape[0] == layer.out_channels:  # a gain, say
                _select(layer, name, 0, keep["out"])
    if "in" in keep:
        if transposed:
            _select(layer, "weight", 0, keep["in"])
        elif removed_whole(layer):
            layer.groups = len(keep["in"]) * layer.groups // layer.in_channels
        else:
            layer.weight = _second_in_groups(layer, keep["in"], layer.in_channels)
        layer.in_channels = len(keep["in"])
    if "out" in keep:
        if transposed:
            layer.weight = _second_in_groups(layer, keep["out"], layer.out_channels)
        else:
            _select(layer, "weight", 0, keep["out"])
        _select(layer, "bias", 0, keep["out"])
        layer.out_channels = len(keep["out"])


def _second_in_groups(layer: nn.modules.conv._ConvNd, keep: Sequence[int], size: int) -> nn.Parameter:
    """The weight with the kept ones of ``size`` positions on its second dimension, which is numbered in each group."""
    width = size // layer.groups
    kept = (torch.as_tensor(keep, dtype=torch.long).reshape(layer.groups, -1) % width).to(layer.weight.device)
    rows = layer.weight.detach().chunk(layer.groups)
    parts = [run.index_select(1, columns) for run, columns in zip(rows, kept.unbind(), strict=True)]
    # On a meta device, which bundles are loaded through, torch imports its compiler to join parts: that takes seconds.
    chosen = parts[0] if len(parts) == 1 else torch.cat(parts)
    return nn.Parameter(chosen, requires_grad=layer.weight.requires_grad)


def _conv_runs(layer: nn.modules.conv._ConvNd, axis: str) -> Tensor:
    """A view of the weight: (channel groups, positions on the axis in one group, everything else)."""
    weight = layer.weight.view(layer.groups, -1, *layer.weight.shape[1:])
    first = "in" if isinstance(layer, _Transposed) else "out"
    if axis == "channels":  # one input a group
        return weight if first == "out" else weight.transpose(1, 2)
    return weight if axis == first else weight.transpose(1, 2)


def _conv_by_channel(layer: nn.Module, axis: str) -> Tensor:
    assert isinstance(layer, _Conv)
    return _conv_runs(layer, axis).flatten(0, 1)


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


def unwrapped_tensor(network: nn.Module, name: str) -> Tensor:
    """A parameter or buffer that no layer of the table owns."""
    owner, _, attribute = name.rpartition(".")
    tensor = getattr(network.get_submodule(owner), attribute)
    assert isinstance(tensor, Tensor)
    return tensor


def _narrow_bare(network: nn.Module, name: str, keep: Keep) -> None:
    owner, _, attribute = name.rpartition(".")
    for axis, kept in keep.items():
        _select(network.get_submodule(owner), attribute, _DIMENSIONS.index(axis), kept)


_DIMENSIONS = ("dim0", "dim1", "dim2", "dim3", "dim4", "dim5")


def _attention_by_channel(layer: nn.Module, axis: str) -> Tensor:
    assert isinstance(layer, nn.MultiheadAttention)
    weight: Tensor = layer.q_proj_weight if layer.in_proj_weight is None else layer.in_proj_weight
    return weight if axis == "channels" else weight.T


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
    (
        (nn.MultiheadAttention,),
        _Handler(frozenset({"in", "channels"}), narrow_attention, _attention_by_channel),
    ),
)
LAYERS: tuple[type[nn.Module], ...] = tuple(kind for kinds, _ in _HANDLERS for kind in kinds)
"""Types that can shrink; the parameters of all other modules are bare."""
