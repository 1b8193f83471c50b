"""The tracer of channels: one forward pass in which every tensor carries, beside its values, whose channels they are.

A tensor's *labels* have its shape, and hold for each entry the id of the channel that it belongs to (an output of a
layer, an entry of an unwrapped parameter), or 0. An operator that only moves entries moves the labels the same way. One
that combines tensors joins the ids that lie at the same place. A layer reads its inputs' labels and gives its outputs
new ones. So views, windows, shuffles and attention need no rules of their own, and nothing depends on how a forward is
written.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from pruneport.compress.graph.channel_ids import ChannelIds, ChannelLabels, varying_dimensions
from pruneport.compress.graph.trace import Notes, Product, Trace
from pruneport.compress.hooks import hooks_restored
from pruneport.compress.sizes.arguments import argument, operator_name, tensors_in
from pruneport.compress.sizes.size_trace import SizeTracer
from pruneport.compress.sizes.traced_sizes import attributes_traced
from pruneport.models.inputs import ExampleInputs, run_on
from pruneport.models.outputs import tensor_leaves

__all__ = ["OpCall", "Operation", "Tracer"]

_LARGEST_PARAMETER = 2_000_000  # entries; a larger unwrapped parameter is a matrix, not a bias of some kind


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


@dataclass(frozen=True)
class Lost:
    """Channel ids that values depend on while no labels show it; ``contracted``: as the inputs of a layer do."""

    key: bytes
    contracted: bool


_ENDED = Lost(b"", True)
"""That values depend on channels which are the inputs of no layer any more."""


@dataclass(frozen=True, eq=False)
class OpCall:
    """One call of an operator of torch, as its handler sees it."""

    function: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any

    @property
    def name(self) -> str:
        """``add_`` of aten.add_.Tensor."""
        return operator_name(self.function)

    @property
    def inputs(self) -> list[Tensor]:
        """All tensors among the arguments, in order."""
        return tensors_in((self.args, self.kwargs))

    @property
    def outputs(self) -> list[Tensor]:
        """All tensors that the call returned."""
        return tensors_in(self.output)

    def argument(self, name: str, default: Any = None) -> Any:
        """An argument by its name, however it was given."""
        return argument(self.function, self.args, self.kwargs, name, default)


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches one forward pass of ``network``.

    Args:
        network: In eval mode.
        operate: What an operation does to labels.
        layers: Types whose parameters are theirs to shrink; other parameters are unwrapped.
        leaves: Types that are not looked into, and what they do: (tracer, name, module, inputs, output).
        sizes: Makes what watches the sizes that forwards give and ask for.
        whole_attention_heads: Whether attention heads go as a whole, where a module says how many it has;
            else their width.
        channel_ids: Of an earlier pass of the same network, whose numbers are taken over.

    Attributes:
        channel_ids: The ids met so far, and how they are joined.
        notes: What else the handlers found.
        sizes: The sizes that forwards gave and asked for.
    """

    def __init__(
        self,
        network: nn.Module,
        operate: Callable[..., None],
        layers: tuple[type[nn.Module], ...],
        leaves: Mapping[type[nn.Module], Callable[..., None]],
        sizes: Callable[[Tracer], SizeTracer],
        whole_attention_heads: bool = False,
        channel_ids: ChannelIds | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.network = network
        self.whole_attention_heads = whole_attention_heads
        self.channel_ids = channel_ids or ChannelIds()
        self.modules = dict(network.named_modules())
        self.layers = layers
        self.notes = Notes()
        self.sizes = sizes(self)
        self._calls: list[str] = []
        self._operate, self._leaves = operate, leaves
        self._stack: list[str] = [""]
        self._silent = 0
        self._labels: Any = WeakTensorKeyDictionary()
        self._weights: Any = WeakTensorKeyDictionary()
        self._lost: Any = WeakTensorKeyDictionary()
        self._parts = {_ENDED.key: torch.zeros(0, dtype=torch.long)}
        self._owners: dict[int, str] = {}
        self._unwrapped: dict[int, str] = {}
        self._learned = {name for name, _ in network.named_parameters(remove_duplicate=False)}
        for name, module in network.named_modules():
            for key, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                if isinstance(module, layers):
                    self._owners.setdefault(id(tensor), name)
                elif tensor.is_floating_point() and 1 < tensor.numel() <= _LARGEST_PARAMETER:
                    self._unwrapped.setdefault(id(tensor), f"{name}.{key}".lstrip("."))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Whether torch's compiler is told to leave the mode alone, for which torch imports it: that takes seconds."""
        return False

    def run(self, example: ExampleInputs, forward: Callable[[nn.Module, ExampleInputs], Any] = run_on) -> Any:
        """The forward pass; returns what the network returns."""
        traced = attributes_traced(self.network, self.layers, self.sizes)
        compiled = "torch._dynamo" in sys.modules  # else nothing of the network can be
        eager = torch.compiler.set_stance("force_eager") if compiled else nullcontext()
        with self._watching(), traced, torch.no_grad(), eager, self, self.sizes:
            return forward(self.network, example)

    def trace(self, example: ExampleInputs, forward: Callable[[nn.Module, ExampleInputs], Any] = run_on) -> Trace:
        """The forward pass, and what it showed."""
        leaves = tensor_leaves(self.run(example, forward))
        shown = [entry for leaf in leaves for entry in self.labels_of(leaf)]
        lost = [part for leaf in leaves for part in self.ids_lost(leaf, contracted=False)]
        return self.notes.freeze(
            channel_ids=self.channel_ids,
            calls=tuple(dict.fromkeys(self._calls)),
            output=(*(entry.compact() for entry in shown), *lost),
            representation=tuple(part for leaf in leaves for part in self.ids_lost(leaf, contracted=True)),
            found_output=any(map(self.lost, leaves)) or any(not entry.unwrapped for entry in shown),
            used_sizes=tuple(self.sizes.used),
            asked_sizes=dict(self.sizes.asked),
            numbers=tuple(self.sizes.numbers),
            compared=tuple(self.sizes.compared),
        )

    def labels_of(self, tensor: Tensor) -> list[ChannelLabels]:
        """The labels of a tensor's entries; empty where they belong to no channel."""
        found: list[ChannelLabels] | None = self._labels.get(tensor)
        if found is None and id(tensor) in self._unwrapped:
            labels = self.channel_ids.register((self._unwrapped[id(tensor)], "flat"), tensor.numel())
            found = self._labels[tensor] = [ChannelLabels(labels.reshape(tensor.shape), unwrapped=True)]
        return found or []

    def labels_along(self, tensor: Tensor, dim: int) -> ChannelLabels | None:
        """The labels whose units change along the dimension, or those of a single channel."""
        dim %= tensor.ndim
        found = [entry for entry in self.labels_of(tensor) if self._fits(entry, dim)]
        return next((entry for entry in found if not entry.unwrapped), found[0] if found else None)

    def give(self, tensor: Tensor, maps: Sequence[ChannelLabels]) -> None:
        """Set a tensor's labels."""
        self._labels[tensor] = list(maps)

    def give_line(self, tensor: Tensor, dim: int, line: Tensor) -> ChannelLabels:
        """Add labels that change along one dimension: line (size,)."""
        shape = [1] * tensor.ndim
        shape[dim] = -1
        added = ChannelLabels(line.reshape(shape).expand(tensor.shape))
        self._labels.setdefault(tensor, []).append(added)
        return added

    def varies(self, entry: ChannelLabels) -> tuple[int, ...]:
        """The dimensions along which the unit changes; where all have become one unit, those of the ids."""
        compact = entry.compact()
        units = varying_dimensions(self.channel_ids.roots(compact))
        if units or entry.unwrapped:
            return units
        elements = varying_dimensions(compact)
        return (max(elements, key=lambda dim: (compact.shape[dim], dim)),) if elements else ()

    def add_product(self, product: Product) -> None:
        """Note multiply-accumulates; of recurrent layers fvcore counts none."""
        if not isinstance(self.modules[self.place], nn.RNNBase):
            self.notes.product(product)

    def is_parameter(self, entry: ChannelLabels) -> bool:
        """Whether the labels are of a parameter that is no layer's, and not of a buffer."""
        elements = entry.labels[entry.labels != 0]
        return entry.unwrapped and len(elements) > 0 and self.channel_ids.key_of(int(elements[0]))[0] in self._learned

    def are_attention_heads(self, line: Tensor) -> bool:
        """Whether the units along a line are whole attention heads, one at each place."""
        units, attention_heads = (
            torch.unique(self.channel_ids.roots(part)) for part in (line, self.notes.known_attention_heads())
        )
        return len(units) == len(line) and bool(torch.isin(units, attention_heads).all())

    @property
    def place(self) -> str:
        """Name of the module that is running."""
        return self._stack[-1]

    @property
    def here(self) -> str:
        """The module that is running, in words."""
        return self.place or "the network"

    def layer_of(self, weight: Tensor | None, kinds: tuple[type[nn.Module], ...]) -> str | None:
        """The layer whose operation this is: the one that runs, or the one that the weight belongs to."""
        if isinstance(self.modules[self.place], kinds):
            return self.place
        view = None if weight is None else self.weight_view(weight)
        return view.layer if view is not None and view.moved and isinstance(self.modules[view.layer], kinds) else None

    def owned(self, tensor: Tensor) -> bool:
        """Whether a layer has this parameter, or it is one seen another way (transposed, reshaped)."""
        view = self.weight_view(tensor)
        return view is not None and view.moved

    def weight_view(self, tensor: Tensor) -> WeightView | None:
        """Which layer's parameter the tensor is, or is computed from entry by entry."""
        view: WeightView | None = self._weights.get(tensor)
        if view is None and (name := self._owners.get(id(tensor))) is not None:
            view = self._weights[tensor] = WeightView(name, *_places_of(tensor, self.modules[name]))
        return view

    def give_view(self, tensor: Tensor, view: WeightView) -> None:
        """Remember that the tensor is a layer's parameter, seen another way or computed from it."""
        self._weights[tensor] = view

    def lost(self, tensor: Tensor) -> frozenset[Lost]:
        """Channel ids that the tensor's values depend on, though no entry's label says so."""
        found: frozenset[Lost] = self._lost.get(tensor, frozenset())
        return found

    def lose(self, outputs: Sequence[Tensor], labels: Tensor, contracted: bool = False) -> None:
        """Note that values were computed from these channels, and that the labels of the outputs do not show it.

        Args:
            outputs: What was computed.
            labels: Their ids, of any shape.
            contracted: Whether they were summed over in a product with a learned matrix, as the inputs of a layer are.
        """
        part = torch.unique(labels[labels != 0])
        if len(part):
            key = part.numpy().tobytes()
            self._parts.setdefault(key, part)
            for tensor in outputs:
                self._lost[tensor] = self.lost(tensor) | {Lost(key, contracted)}

    def carry(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """What the inputs have lost, the outputs have lost, and so has the tensor that one is a view of."""
        if carried := frozenset().union(*map(self.lost, inputs)):
            for tensor in outputs:
                self._lost[tensor] = self.lost(tensor) | carried

    def contract(self, output: Tensor) -> None:
        """A product with a learned matrix: what was lost before is its input, and what was an input ends."""
        if found := self.lost(output):
            self._lost[output] = frozenset(Lost(one.key, True) for one in found if not one.contracted) | {_ENDED}

    def end(self, output: Tensor) -> None:
        """A layer made the output: nothing before it counts."""
        if self.lost(output):
            self._lost[output] = frozenset()

    def ids_lost(self, tensor: Tensor, contracted: bool) -> list[Tensor]:
        """The channel ids behind ``lost``."""
        return [self._parts[one.key] for one in self.lost(tensor) if one.contracted == contracted]

    def same_memory(self, tensor: Tensor) -> Tensor | None:
        """A known tensor with the same entries in the same memory."""
        place = _memory(tensor)
        return next((other for other in list(self._labels) if other is not tensor and _memory(other) == place), None)

    def _fits(self, entry: ChannelLabels, dim: int) -> bool:
        varies = self.varies(entry)
        return dim in varies if entry.unwrapped else varies == (dim,) or (not varies and entry.labels.shape[dim] == 1)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = self.compute(function, args, kwargs or {})
        if not self._silent:
            self._operate(self, OpCall(function, args, kwargs or {}, output))
        return output

    def compute(self, function: Any, args: Any, kwargs: Any) -> Any:
        """The operation itself."""
        return function(*args, **kwargs)

    @property
    def silent(self) -> bool:
        """Whether a module is running that is not looked into."""
        return self._silent > 0

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """Know in the block which module is running."""
        with hooks_restored(self.network):
            for name, module in self.modules.items():
                module.register_forward_pre_hook(self._entering(name), with_kwargs=True)
                module.register_forward_hook(self._leaving(name), with_kwargs=True)
            yield

    def _entering(self, name: str) -> Callable[..., None]:
        """A hook that notes that a module has begun."""
        leaf = isinstance(self.modules[name], tuple(self._leaves))

        def hook(module: nn.Module, inputs: Any, named: Any) -> None:
            self._stack.append(name)
            self._silent += leaf
            self.sizes.entered(name)

        return hook

    def _leaving(self, name: str) -> Callable[..., None]:
        """A hook that notes that a module has ended, and says what one does that is not looked into."""
        leaf = next((leaf for kind, leaf in self._leaves.items() if isinstance(self.modules[name], kind)), None)

        def hook(module: nn.Module, inputs: Any, named: Any, output: Any) -> None:
            self._stack.pop()
            self._calls.append(name)
            if leaf is not None:
                self._silent -= 1
                self.sizes.paused = True
                leaf(self, name, module, [*inputs, *named.values()], output)
                self.sizes.paused = False

        return hook


def _memory(tensor: Tensor) -> tuple[Any, ...]:
    """Where a tensor lies in memory: equal for two views of the same entries."""
    return tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride()


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


Operation = Callable[[Tracer, OpCall], None]
"""What an operation does to the labels of its tensors."""
