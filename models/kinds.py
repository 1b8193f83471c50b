"""Networks that cannot be pruned as they are, told by their kind or their weights and refused by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pruneport.errors import ModelError

__all__ = ["check_finite", "check_kind"]

_QUANTISED = ("torch.ao.nn.", "torch.ao.quantization.", "torch.nn.quantized.", "torchao.")
_SHARDED = ("FullyShardedDataParallel", "FSDPModule", "DTensor")


def check_kind(network: Any) -> None:
    """Refuse by name what cannot be pruned, wherever it comes from.

    Raises:
        ModelError: It is no network; is quantised, scripted or sharded; has no values yet; or is not of float32.
    """
    if not isinstance(network, nn.Module):
        kind = network.__name__ if isinstance(network, type) else type(network).__name__
        raise ModelError(
            f"the network is a {kind}; expected a torch.nn.Module, such as torchvision.models.resnet50(). "
            "A source such as 'torchvision:resnet50' is for pruneport.ship."
        )
    if isinstance(network, torch.jit.ScriptModule):
        raise ModelError(
            "a network that torch.jit has scripted or traced cannot be pruned: give the one before torch.jit.script "
            "and torch.jit.trace."
        )
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    faults = {
        "sharded over processes (FSDP or tensor parallel)": (
            _sharded,
            "Gather its full state dict into a network that is not sharded.",
        ),
        "without values (lazy, or on the meta device)": (
            lambda part: isinstance(part, torch.Tensor) and (torch.nn.parameter.is_lazy(part) or part.is_meta),
            "Run it once, or load its weights, before it is given.",
        ),
        "quantised, or prepared for it": (
            _quantised,
            "Give the network as it is before quantisation, and quantise the pruned one.",
        ),
    }
    for fault, (has_it, advice) in faults.items():
        named = [*network.named_modules(), *tensors.items()]
        found = [name or "the network itself" for name, part in named if has_it(part)]
        if found:
            shown = ", ".join(found[:10]) + (f" and {len(found) - 10} more" if len(found) > 10 else "")
            raise ModelError(f"the network is {fault}: {shown}. {advice}")
    kinds = {tensor.dtype for tensor in network.parameters() if tensor.is_floating_point()}
    if kinds and torch.float32 not in kinds:
        raise ModelError(
            f"the network's weights are {', '.join(sorted(map(str, kinds)))}; expected torch.float32: give a copy that "
            ".float() was called on, or call it in the factory."
        )


def _sharded(part: Any) -> bool:
    return any(kind.__name__ in _SHARDED for kind in type(part).__mro__)


def _quantised(part: Any) -> bool:
    if isinstance(part, torch.Tensor) and part.is_quantized:
        return True
    return f"{type(part).__module__}.".startswith(_QUANTISED)


def check_finite(network: nn.Module) -> None:
    """Raise a ``ModelError`` where a weight is not a finite number."""
    bad = [
        name
        for name, tensor in network.state_dict().items()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]
    if bad:
        shown = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
        raise ModelError(f"NaN or infinite weights in {shown}; expected finite numbers. Use an undamaged checkpoint.")
