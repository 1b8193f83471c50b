"""Forwards with a width written into them: a pruned network runs them with the sizes that are there.

Many attentions read a width off their input where they mean that of their own attention heads: ``reshape(B, N, C)`` and
``C // num_heads``. The plan names such sizes call by call (see ``size_calls``), and ``replace_sizes`` puts the new
ones in their place while the forward runs. Plans of format 1 do not: for them a table names the types whose
reshapes are given their last size open.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pruneport.compress.sizes.call_sites import call_site
from pruneport.compress.sizes.size_calls import SIZE_CALLS
from pruneport.compress.sizes.size_queries import QUERIES

__all__ = ["ADAPTED", "adapt", "replace_sizes", "replaced_sizes", "restore_sizes"]

ADAPTED = frozenset(
    f"{module}.{name}"
    for module, names in {
        "timm.models.beit": "Attention",
        "timm.models.cait": "ClassAttn TalkingHeadAttn",
        "timm.models.convit": "GPSA MHSA",
        "timm.models.crossvit": "CrossAttention",
        "timm.models.davit": "ChannelAttention ChannelAttentionV2 WindowAttention",
        "timm.models.edgenext": "CrossCovarianceAttn",
        "timm.models.eva": "EvaAttention",
        "timm.models.fastvit": "Attention",
        "timm.models.gcvit": "WindowAttentionGlobal",
        "timm.models.metaformer": "Attention",
        "timm.models.nest": "Attention",
        "timm.models.nextvit": "EfficientAttention",
        "timm.models.pvt_v2": "Attention",
        "timm.models.swin_transformer_v2_cr": "WindowMultiHeadAttention",
        "timm.models.tnt": "Attention",
        "timm.models.twins": "GlobalSubSampleAttn LocallyGroupedAttn",
        "timm.models.vision_transformer_relpos": "RelPosAttention",
        "timm.models.volo": "Attention ClassAttention",
        "timm.models.xcit": "XCA",
        "torchvision.models.maxvit": "RelativePositionalMultiHeadAttention",
        "torchvision.models.swin_transformer": "ShiftedWindowAttention",
    }.items()
    for name in names.split()
)
"""Types, and with them their subclasses, by the path of the class, so that no library is imported for it."""


_RESHAPES = (Tensor.reshape, Tensor.view, torch.reshape)


def adapt(network: nn.Module, shrunk: Iterable[str]) -> None:
    """Leave the last size of reshapes open in modules of known types that own one of the layers, in place.

    Args:
        network: The pruned network.
        shrunk: Names of its layers and parameters that have lost channels.
    """
    owners = {name.rpartition(".")[0] for name in shrunk}
    for name, module in network.named_modules():
        if name in owners and _is_adapted(module) and not isinstance(module, _Adapted):
            module.__class__ = type(type(module).__name__, (_Adapted, type(module)), {"_dense_type": type(module)})


def _is_adapted(module: nn.Module) -> bool:
    """Whether the module is of a known type."""
    return any(_path(kind) in ADAPTED for kind in type(module).__mro__)


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def replace_sizes(network: nn.Module, sizes: Mapping[str, Mapping[str, Mapping[int, int]]]) -> None:
    """Let modules run their own forward with other sizes in some of its calls, in place.

    Args:
        network: The pruned network.
        sizes: Module -> call of its forward that takes or returns sizes (see ``call_site``) -> slot -> size.
    """
    modules = dict(network.named_modules())
    for name, calls in sizes.items():
        module: Any = modules[name]
        if not isinstance(module, _Resized):
            kind = type(module)
            module.__class__ = type(
                kind.__name__, (_Resized, kind), {"_dense_type": kind, "__module__": kind.__module__}
            )
            module._sizes = {}
        module._sizes = {
            **module._sizes,
            **{call: {**module._sizes.get(call, {}), **slots} for call, slots in calls.items()},
        }


def replaced_sizes(network: nn.Module) -> dict[str, dict[str, dict[int, int]]]:
    """What ``replace_sizes`` has replaced in a network: module -> call -> slot -> size."""
    return {name: module._sizes for name, module in network.named_modules() if isinstance(module, _Resized)}


def restore_sizes(network: nn.Module, sizes: Mapping[str, Mapping[str, Mapping[int, int]]]) -> None:
    """Let forwards run with the sizes that were replaced before (see ``replaced_sizes``), and no others, in place."""
    for name, module in network.named_modules():
        if isinstance(module, _Resized):
            module._sizes = {call: dict(slots) for call, slots in sizes.get(name, {}).items()}


class _Resized(nn.Module):
    """Runs its dense type's own forward, with some of its sizes replaced."""

    _dense_type: type[nn.Module]
    _sizes: dict[str, dict[int, int]]

    def forward(self, *inputs: Any, **named: Any) -> Any:
        with _ReplacedSizes(self, self._sizes):
            return self._dense_type.forward(self, *inputs, **named)


class _ReplacedSizes(TorchFunctionMode):
    """Replaces sizes in the calls that a module makes itself; those of modules inside it are theirs."""

    def __init__(self, module: nn.Module, sizes: Mapping[str, Mapping[int, int]]) -> None:
        super().__init__()
        self._module, self._sizes = module, sizes
        self._calls: Counter[str] = Counter()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        query, call = QUERIES.get(function), SIZE_CALLS.get(function)
        module, site = (None, "") if query is None and call is None else call_site(function)
        if module is not self._module:
            return function(*args, **named)
        slots = self._sizes.get(f"{site} {self._calls[site]}")
        self._calls[site] += 1
        if slots is None:
            return function(*args, **named)
        if call is not None:
            args, named = call.replace(args, named, slots)
            return function(*args, **named)
        assert query is not None
        return query.replace(function(*args, **named), slots)


class _Adapted(nn.Module):
    """Runs its dense type's own forward."""

    _dense_type: type[nn.Module]

    def forward(self, *inputs: Any, **named: Any) -> Any:
        with _OpenReshapes():
            return self._dense_type.forward(self, *inputs, **named)


class _OpenReshapes(TorchFunctionMode):
    """Computes the last size of a reshape from the others."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in _RESHAPES and len(args) > 1 and not kwargs:
            sizes = args[1] if isinstance(args[1], tuple | list) else args[1:]
            if not isinstance(sizes[-1], torch.dtype) and not any(type(size) is int and size == -1 for size in sizes):
                return function(args[0], (*sizes[:-1], -1))
        return function(*args, **(kwargs or {}))
