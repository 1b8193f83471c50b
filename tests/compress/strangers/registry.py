"""A stranger: a small network, and what pruning it must do. Decided from what is right, not from what is done today."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from small_networks import conv, parameter, pooled

__all__ = ["STRANGERS", "ConvBN", "Must", "Stranger", "add", "conv", "parameter", "pooled"]


@dataclass(frozen=True, kw_only=True)
class Must:
    """What pruning must do; of what is not named, any part may stay dense.

    Attributes:
        prunes: Layers and unwrapped parameters whose width must be smaller.
        keeps: Those whose width must stay: outputs, however they leave, and the representation.
        refuses: Words of the error where the network cannot be pruned with these options.
        may_refuse: Words of an error that would be right too.
        or_notes: Words of the plan's note where it may fail on inputs unlike those that it is tried with.
    """

    prunes: tuple[str, ...] = ()
    keeps: tuple[str, ...] = ()
    refuses: str = ""
    may_refuse: str = ""
    or_notes: str = ""


@dataclass(frozen=True, kw_only=True)
class Stranger:
    """A network and what it must do.

    Attributes:
        name: What it is.
        factory: Builds it, with random weights.
        shape: Of one input, C, H, W.
        must: What pruning must do.
        options: Of ``PruneOptions``, where the defaults (scope filters, round_to 1) do not show the point.
        batch: How many inputs it takes; 1 where the forward takes no more.
        by_values: Whether what runs, or how much is returned, follows from the values, as where boxes are filtered.
        onnx: Whether it is also exported.
    """

    name: str
    factory: Callable[[], nn.Module]
    shape: tuple[int, int, int]
    must: Must
    options: Mapping[str, Any] = field(default_factory=dict)
    batch: int = 2
    by_values: bool = False
    onnx: bool = False

    def build(self) -> nn.Module:
        """The network in eval mode; the same weights each time, and none of them without effect."""
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old forms of weight norm, say, which users still have
            torch.manual_seed(0)
            network = self.factory()
            _enliven(network)
        return network.eval()


STRANGERS: dict[str, Stranger] = {}
"""All of them by name."""


def add(
    name: str,
    factory: Callable[[], nn.Module],
    shape: tuple[int, int, int] = (3, 16, 16),
    *,
    prunes: str = "",
    keeps: str = "",
    refuses: str = "",
    may_refuse: str = "",
    or_notes: str = "",
    **fields: Any,
) -> None:
    """Register a stranger; ``prunes`` and ``keeps`` are names of layers with spaces between, other fields go on."""
    assert name not in STRANGERS, name
    must = Must(
        prunes=tuple(prunes.split()),
        keeps=tuple(keeps.split()),
        refuses=refuses,
        may_refuse=may_refuse,
        or_notes=or_notes,
    )
    STRANGERS[name] = Stranger(name=name, factory=factory, shape=shape, must=must, **fields)


def _enliven(network: nn.Module) -> None:
    """Make a wrong channel show: torch's first weights are small, and norms, scales and tables start constant."""
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd) and isinstance(module.weight, nn.Parameter):
            module.weight.data *= 3**0.5  # to the variance of LeCun's initialisation, 1 / inputs
    for tensor in network.parameters():
        if tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all()):
            tensor.data += torch.empty_like(tensor).uniform_(-0.5, 0.5)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.2, 0.6)


class ConvBN(nn.Sequential):
    """Convolution, BatchNorm and an activation, as most people stack them."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        stride: int = 1,
        groups: int = 1,
        act: type[nn.Module] | None = nn.ReLU,
    ) -> None:
        layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        super().__init__(layer, nn.BatchNorm2d(outputs), *([] if act is None else [act()]))
