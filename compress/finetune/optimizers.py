"""Optimizers and their learning rates."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from pruneport.compress.options import TrainOptions

__all__ = ["learning_rate_at", "make_optimizer", "relative_rates"]

_MOMENTUM = 0.9
_RATES = {"sgd": 0.01, "adamw": 3e-4}
_LEAST_SIZE = 1e-3  # of a parameter, where steps are relative to it


def learning_rate_at(share: float, warmup: float) -> float:
    """Share of the highest learning rate: a linear rise, then a cosine (Loshchilov & Hutter 2017, arXiv 1608.03983).

    Args:
        share: Of the training that is done.
        warmup: Share of the training in which the rate rises.
    """
    if share < warmup:
        return share / warmup
    return 0.5 * (1 + math.cos(math.pi * (share - warmup) / (1 - warmup)))


def make_optimizer(
    network: nn.Module, options: TrainOptions, output_layers: tuple[str, ...], device: torch.device
) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum or AdamW; output layers learn faster, and only weights decay.

    Each group of parameters remembers its highest learning rate as ``highest``.
    """
    rate = options.learning_rate if options.learning_rate is not None else _RATES[options.optimizer]
    head_rate = rate * (1 if options.keep_head else options.head_rate)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        makes_outputs = any(name.startswith(f"{layer}.") for layer in output_layers)
        decay = options.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((head_rate if makes_outputs else rate, decay), []).append(parameter)
    listed = [_group(parameters, highest, decay) for (highest, decay), parameters in groups.items()]
    if options.optimizer == "adamw":
        return torch.optim.AdamW(listed, fused=_fused(device))
    return torch.optim.SGD(listed, lr=rate, momentum=_MOMENTUM, nesterov=True, fused=_fused(device))


def relative_rates(network: nn.Module, rate: float, device: torch.device) -> torch.optim.Optimizer:
    """AdamW whose steps are a share of what they change: each parameter learns at ``rate`` times its root mean square.

    So weights that a norm makes up for may be of any size. A parameter near zero learns as one of 1e-3 would (as in
    Adafactor, Shazeer & Stern 2018, arXiv 1804.04235). None decays.
    """
    sizes = [float(parameter.detach().float().square().mean().sqrt()) for parameter in network.parameters()]
    listed = [
        _group([parameter], rate * max(size, _LEAST_SIZE), 0.0)
        for parameter, size in zip(network.parameters(), sizes, strict=True)
    ]
    return torch.optim.AdamW(listed, fused=_fused(device))


def _group(parameters: list[nn.Parameter], highest: float, decay: float) -> dict[str, Any]:
    return {"params": parameters, "lr": highest, "highest": highest, "weight_decay": decay}


def _fused(device: torch.device) -> bool | None:
    """On a CPU torch's fused step: for a small network the default, a loop, takes a tenth of the training."""
    return True if device.type == "cpu" else None  # None: torch chooses
