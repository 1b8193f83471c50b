"""Which tensors of a forward pass are parameters of layers, seen another way or computed from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["WeightView", "WeightViews"]


@dataclass(frozen=True, eq=False)
class WeightView:
    """A tensor whose entries are those of a layer's parameter.

    Attributes:
        layer: Its name.
        outputs: Of every entry, its place along the parameter's outputs, from 1 on.
        inputs: The same along its inputs (of one channel group).
        moved: Whether the entries were only moved, and have the parameter's own values.
    """

    layer: str
    outputs: Tensor
    inputs: Tensor
    moved: bool = True


class WeightViews:
    """Follows the parameters and buffers of a network's layers; ``layers`` are the types that own theirs."""

    def __init__(self, network: nn.Module, layers: tuple[type[nn.Module], ...]) -> None:
        self._views: Any = WeakTensorKeyDictionary()
        self._owners: dict[int, tuple[str, nn.Module]] = {}
        for name, module in network.named_modules():
            if isinstance(module, layers):
                for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
                    self._owners.setdefault(id(tensor), (name, module))

    def owned(self, tensor: Tensor) -> bool:
        """Whether a layer has this parameter, or it is one seen another way (transposed, reshaped)."""
        view = self.weight_view(tensor)
        return view is not None and view.moved

    def weight_view(self, tensor: Tensor) -> WeightView | None:
        """Which layer's parameter the tensor is, or is computed from entry by entry."""
        view: WeightView | None = self._views.get(tensor)
        if view is None and (owner := self._owners.get(id(tensor))) is not None:
            name, layer = owner
            view = self._views[tensor] = WeightView(name, *_places_of(tensor, layer))
        return view

    def give_view(self, tensor: Tensor, view: WeightView) -> None:
        """Remember that the tensor is a layer's parameter, seen another way or computed from it."""
        self._views[tensor] = view


def _places_of(weight: Tensor, layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Of every entry its place along the outputs and along the inputs of its channel group, from 1 on."""
    sizes = list(weight.shape)
    if len(sizes) < 2:
        places = torch.arange(1, weight.numel() + 1).reshape(weight.shape)
        return places, torch.zeros_like(places)
    out, into = (1, 0) if isinstance(layer, nn.modules.conv._ConvTransposeNd) else (0, 1)
    return tuple(  # type: ignore[return-value]
        torch.arange(1, sizes[dim] + 1).reshape([-1 if d == dim else 1 for d in range(len(sizes))]).expand(sizes)
        for dim in (out, into)
    )
