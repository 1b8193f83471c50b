"""What passes show of the layers that are solved: the rows of their equations, and what their outputs are added to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pruneport.compress.activations.least_squares import chosen_places, input_rows, output_rows
from pruneport.compress.activations.replay import Stopped
from pruneport.compress.recovery.clipping import ADDITIONS
from pruneport.compress.recovery.input_channels import InputChannels

__all__ = ["Given", "Wanted", "Watch"]

_BatchNorm = nn.modules.batchnorm._BatchNorm
_TRANSPARENT = {F.batch_norm, torch.batch_norm, F.dropout}


class _Watcher(Protocol):
    """Takes what is seen of one layer in every pass."""

    def reads(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Called before the layer runs."""

    def gives(self, layer: nn.Module, output: Tensor) -> None:
        """Called after it ran."""

    def meets(self, other: Tensor) -> None:
        """Called with what its output is added to, if that is what is first done with it."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What one layer of the dense network gives in one batch, at some places of its output.

    Attributes:
        layer: The layer.
        shape: Of its output, of which only the channels count that are left.
        places: Which places; see ``chosen_places``.
        targets: The output (rows, channels).
    """

    layer: nn.Module
    shape: torch.Size
    places: Tensor
    targets: Tensor

    def of(self, other: Tensor) -> Tensor | None:
        """Something else at these places; None where it has another shape than the output."""
        return output_rows(self.layer, other, self.places) if other.shape == self.shape else None


class Wanted:
    """The rows of one layer of the dense network in the first batches, and what is added to them.

    Args:
        kept: The output channels that are left; None where all are.
        batches: How many.
        limit: Rows of all of them, about.
        channels: Take what the layer reads, where that is wanted.
    """

    def __init__(
        self, kept: Sequence[int] | None, batches: int, limit: int, channels: InputChannels | None = None
    ) -> None:
        self.rows: list[Rows] = []
        self.added: dict[int, Tensor | None] = {}
        self.channels = channels
        self._kept = None if kept is None else torch.as_tensor(kept)
        self._batches, self._limit = batches, limit // batches
        self._runs = 0
        self._generator = torch.Generator().manual_seed(0)

    def reads(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Take the inputs."""
        if self.channels is not None:
            self.channels.wanted(layer, inputs[0])

    def gives(self, layer: nn.Module, output: Tensor) -> None:
        """Take the output."""
        self._runs += 1
        if self._runs > self._batches:
            return
        places = chosen_places(layer, output, self._limit, self._generator)
        targets, shape = output_rows(layer, output, places), [*output.shape]
        if self._kept is not None:
            targets = targets.index_select(1, self._kept.to(targets.device))
            shape[-1 if isinstance(layer, nn.Linear) else 1] = len(self._kept)
        self.rows.append(Rows(layer=layer, shape=torch.Size(shape), places=places, targets=targets))

    def meets(self, other: Tensor) -> None:
        """Take what is added."""
        if self._runs <= self._batches:
            self.added[self._runs - 1] = self.rows[-1].of(other)

    def start(self, layer: Any, ridge: float | None, centred: bool) -> Tensor:
        """Weights (outputs, inputs, ...) of the pruned layer that its solve starts from, as ``InputChannels`` reads."""
        weight: Tensor = layer.weight.detach()
        if self.channels is None:
            return weight
        dense: Any = self.rows[0].layer
        weight = dense.weight.detach()
        weight = weight if self._kept is None else weight[self._kept.to(weight.device)]
        return self.channels.read(weight, ridge, centred)


class Given:
    """What the same layer of the pruned network reads in the running batch, and what its output is added to.

    Args:
        wanted: The dense layer's.
        summed: Whether it matters what the output is added to; else the pass ends before the layer runs.
    """

    def __init__(self, wanted: Wanted, *, summed: bool) -> None:
        self.batch = -1
        self.images = 0
        self.inputs = torch.empty(0)
        self.added: Tensor | None = None
        self.summed = False
        self._wanted, self._summed = wanted, summed

    def reads(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Take the inputs."""
        self.batch += 1
        rows = self._wanted.rows[self.batch]
        self.images = len(inputs[0])
        self.inputs = input_rows(layer, inputs[0], rows.shape[2:], rows.places)
        if self._wanted.channels is not None:
            self._wanted.channels.given(layer, self.batch, inputs[0])
        self.added, self.summed = None, False
        if not self._summed:
            raise Stopped

    def gives(self, layer: nn.Module, output: Tensor) -> None:
        """Nothing is wanted of the output itself."""

    def meets(self, other: Tensor) -> None:
        """Take what is added."""
        self.summed, self.added = True, self._wanted.rows[self.batch].of(other)


class Watch(TorchFunctionMode):
    """Shows layers to their watchers, and follows their outputs to where they are read.

    Args:
        network: Whose layers.
        watchers: By the layer's name.
        stop: Called when there is nothing more to be seen of a pass.
    """

    def __init__(self, network: nn.Module, watchers: Mapping[str, _Watcher], stop: Callable[[], None]) -> None:
        super().__init__()
        self._network, self._watchers, self._stop = network, watchers, stop
        self._handles: list[Any] = []
        self._branches: dict[str, Tensor] = {}
        self._left = set(watchers)

    def __enter__(self) -> Watch:
        for name, watcher in self._watchers.items():
            layer = self._network.get_submodule(name)
            self._handles.append(layer.register_forward_pre_hook(watcher.reads))
            self._handles.append(layer.register_forward_hook(self._gives(name)))
        for module in self._network.modules():
            if isinstance(module, _BatchNorm | nn.Identity | nn.Dropout):
                self._handles.append(module.register_forward_hook(self._passes_on))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()

    def seen(self) -> bool:
        """Whether there is nothing more to be seen of the running pass."""
        return not self._left

    def renew(self) -> None:
        """Begin with another pass."""
        self._branches.clear()
        self._left = set(self._watchers)

    def _gives(self, name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: Any, output: Tensor) -> None:
            self._watchers[name].gives(layer, output)
            self._branches[name] = output

        return hook

    def _passes_on(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        for name in self._followed(inputs[:1]):
            self._branches[name] = output

    def _followed(self, tensors: Sequence[Any]) -> list[str]:
        """Layers whose branch is one of the tensors."""
        return [name for name, branch in self._branches.items() if any(tensor is branch for tensor in tensors)]

    def _end(self, names: Sequence[str]) -> None:
        for name in names:
            del self._branches[name]
        self._left.difference_update(names)
        if names and not self._left:
            self._stop()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        names = self._followed(args)
        if names and function in ADDITIONS:
            others = {name: args[1] if args[0] is self._branches[name] else args[0] for name in names}
            added = {name: other for name, other in others.items() if isinstance(other, Tensor)}
            for name, other in added.items():
                self._watchers[name].meets(other)
            self._end([*added])
            names = [name for name in names if name not in added]
        result = function(*args, **(kwargs or {}))
        if names and isinstance(result, Tensor) and function not in _TRANSPARENT:
            self._end(names)  # the branch goes on into something else than an addition
        return result
