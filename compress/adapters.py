"""Forwards with a width written into them: known types whose reshapes are told to take what is there.

Many attentions read a width off their input where they mean that of their own heads: ``reshape(B, N, C)`` and
``C // num_heads``. In all forwards named here such a size is the last one of a reshape. There it is left open: a dense
network computes the same, and a pruned one computes right.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["ADAPTED", "RESHAPES", "adapt", "is_adapted", "is_scaled_by_input"]

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


_SCALED_BY_INPUT = frozenset({"torchvision.models.swin_transformer.ShiftedWindowAttention"})

RESHAPES = (Tensor.reshape, Tensor.view, torch.reshape)
"""Functions that a forward asks for a shape with."""


def adapt(network: nn.Module, shrunk: Iterable[str]) -> None:
    """Leave the last size of reshapes open in modules of known types that own one of the layers, in place.

    Args:
        network: The pruned network.
        shrunk: Names of its layers and parameters that have lost channels.
    """
    owners = {name.rpartition(".")[0] for name in shrunk}
    for name, module in network.named_modules():
        if name in owners and is_adapted(module) and not isinstance(module, _Adapted):
            module.__class__ = type(type(module).__name__, (_Adapted, type(module)), {"_dense_type": type(module)})


def is_adapted(module: nn.Module) -> bool:
    """Whether the module is of a known type."""
    return any(_path(kind) in ADAPTED for kind in type(module).__mro__)


def is_scaled_by_input(module: nn.Module) -> bool:
    """Whether the module divides its logits by a number that it takes from the width of its input."""
    return _path(getattr(module, "_dense_type", type(module))) in _SCALED_BY_INPUT


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


class _Adapted(nn.Module):
    """Runs its dense type's own forward."""

    _dense_type: type[nn.Module]

    def forward(self, *inputs: Any, **named: Any) -> Any:
        with _OpenReshapes():
            return self._dense_type.forward(self, *inputs, **named)


class _OpenReshapes(TorchFunctionMode):
    """Computes the last size of a reshape from the others."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in RESHAPES and len(args) > 1 and not kwargs:
            sizes = args[1] if isinstance(args[1], tuple | list) else args[1:]
            if not isinstance(sizes[-1], torch.dtype) and not any(type(size) is int and size == -1 for size in sizes):
                return function(args[0], (*sizes[:-1], -1))
        return function(*args, **(kwargs or {}))
