"""Layers, parameters and buffers of a network, shrunk and zeroed by their names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.spectral_norm import SpectralNormLoadStateDictPreHook

from pruneport.compress.resize.layer_types import (
    Keep,
    attention_by_channel,
    conv_runs,
    handler_of,
    removed_whole,
    select,
)
from pruneport.models.parts import owner_of, part, set_part

__all__ = [
    "axis_size",
    "block_count",
    "narrow",
    "parts_by_name",
    "ties_kept",
    "unwrapped_tensor",
    "weight_by_channel",
    "zero_channels",
]


def narrow(network: nn.Module, name: str, keep: Keep) -> None:
    """Keep only the given positions on each axis of the named layer or parameter, in place.

    Raises:
        PruningError: The layer cannot be resized.
    """
    try:
        layer = network.get_submodule(name)
    except AttributeError:
        _narrow_unwrapped(network, name, keep)
        return
    _fold(layer)
    handler_of(layer).narrow(layer, keep)


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
                set_part(network, name, _parameter(network, changed[0]))


def _parameter(network: nn.Module, name: str) -> Any:
    return getattr(*owner_of(network, name), None)


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
        if isinstance(layer, nn.modules.conv._ConvNd):
            runs = conv_runs(layer, axis)
            runs[lost.reshape(runs.shape[:2])] = 0
        elif (by_channel := handler_of(layer).by_channel(layer, axis)) is not None:  # a view
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
    weight = handler_of(layer).by_channel(layer, axis)
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
        return len(attention_by_channel(layer, axis)) * (parts if axis == "channels" else 1)
    if isinstance(layer, nn.modules.conv._ConvNd) and axis == "channels":
        return layer.out_channels if 1 < layer.groups == layer.in_channels else 0
    found = next((size for name in _SIZES.get(axis, ()) if (size := getattr(layer, name, 0))), 0)
    return int(found[-1] if isinstance(found, tuple) else found)


def block_count(layer: nn.Module | Tensor, axis: str, whole_channel_groups: bool = True) -> int:
    """Equal runs of channels that must keep the same count on this axis."""
    if isinstance(layer, nn.modules.conv._ConvNd) and axis != "channels":
        return 1 if whole_channel_groups and removed_whole(layer) else layer.groups
    if isinstance(layer, nn.GroupNorm):
        return layer.num_groups
    return 1


def unwrapped_tensor(network: nn.Module, name: str) -> Tensor:
    """A parameter or buffer that no layer of the table owns."""
    tensor = part(network, name)
    assert isinstance(tensor, Tensor)
    return tensor


def _narrow_unwrapped(network: nn.Module, name: str, keep: Keep) -> None:
    owner, attribute = owner_of(network, name)
    for axis, kept in keep.items():
        select(owner, attribute, _DIMENSIONS.index(axis), kept)


_DIMENSIONS = ("dim0", "dim1", "dim2", "dim3", "dim4", "dim5")


_SIZES = {
    "in": ("in_channels", "in_features"),
    "out": ("out_channels", "out_features"),
    "channels": ("num_features", "num_channels", "normalized_shape", "num_parameters"),
}
