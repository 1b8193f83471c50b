"""The tracer of channels: one forward pass in which every tensor carries, beside its values, whose channels they are.

A tensor's *labels* have its shape, and hold for each entry the id of the channel that it belongs to (an output of a
layer, an entry of an unwrapped parameter), or 0. An operator that only moves entries moves the labels the same way. One
that combines tensors joins the ids that lie at the same place. A layer reads its inputs' labels and gives its outputs
new ones. So views, windows, shuffles and attention need no rules of their own, and nothing depends on how a forward is
written.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pruneport.compress.graph.tracing.channel_ids import ChannelIds
from pruneport.compress.graph.tracing.dataflow import Dataflow, is_sum
from pruneport.compress.graph.tracing.labels import Labels
from pruneport.compress.graph.tracing.trace import Notes, Product, Trace
from pruneport.compress.graph.tracing.weight_views import WeightViews
from pruneport.compress.hooks import hooks_restored
from pruneport.compress.sizes.arguments import argument, nested_tensors, operator_name
from pruneport.compress.sizes.size_trace import SizeTracer
from pruneport.compress.sizes.traced_sizes import attributes_traced
from pruneport.models.inputs import ExampleInputs, run_on
from pruneport.models.outputs import tensor_leaves

__all__ = ["OpCall", "Operation", "Tracer"]


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

    @cached_property
    def inputs(self) -> list[Tensor]:
        """All tensors among the arguments, in order."""
        return nested_tensors((self.args, self.kwargs))

    @cached_property
    def outputs(self) -> list[Tensor]:
        """All tensors that the call returned."""
        return nested_tensors(self.output)

    def argument(self, name: str, default: Any = None) -> Any:
        """An argument by its name, however it was given."""
        return argument(self.function, self.args, self.kwargs, name, default)


class Tracer(Labels, WeightViews, TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches one forward pass of ``network``; see ``Labels`` and ``WeightViews`` for what it knows of each tensor.

    Args:
        network: In eval mode.
        operate: What an operation does to labels.
        layers: Types whose parameters are theirs to shrink; other parameters are unwrapped.
        leaves: Types that are not looked into, and what they do: (tracer, name, module, inputs, output).
        sizes: Makes what watches the sizes that forwards give and ask for.
        whole_attention_heads: Whether attention heads go as a whole, where a module says how many it has;
            else their width.
        whole_channel_groups: Whether narrow channel groups of a convolution go as a whole; else each loses as many.
        channel_ids: Of an earlier pass of the same network, whose numbers are taken over.

    Attributes:
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
        whole_channel_groups: bool = True,
        channel_ids: ChannelIds | None = None,
    ) -> None:
        TorchDispatchMode.__init__(self)  # type: ignore[no-untyped-call]
        Labels.__init__(self, network, layers, channel_ids)
        WeightViews.__init__(self, network, layers)
        self.network = network
        self.whole_attention_heads = whole_attention_heads
        self.whole_channel_groups = whole_channel_groups
        self.modules = dict(network.named_modules())
        self.layers = layers
        self.notes = Notes()
        self.sizes = sizes(self)
        self._flow = Dataflow(network)
        self._calls: list[str] = []
        self._operate, self._leaves = operate, leaves
        self._stack: list[str] = [""]
        self._silent = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Whether torch's compiler is told to leave the mode alone, for which torch imports it: that takes seconds."""
        return False

    def run(self, example: ExampleInputs, forward: Callable[[nn.Module, ExampleInputs], Any] = run_on) -> Any:
        """The forward pass; returns what the network returns."""
        traced = attributes_traced(self.network, self.layers, self.sizes)
        self._flow.started(nested_tensors(example))
        compiled = "torch._dynamo" in sys.modules  # else nothing of the network can be
        eager = torch.compiler.set_stance("force_eager") if compiled else nullcontext()
        with self._watching(), traced, torch.no_grad(), eager, self, self.sizes:
            return forward(self.network, example)

    def trace(self, example: ExampleInputs, forward: Callable[[nn.Module, ExampleInputs], Any] = run_on) -> Trace:
        """The forward pass, and what it showed."""
        leaves = tensor_leaves(self.run(example, forward))
        shown = [labels for leaf in leaves for labels in self.labels_of(leaf)]
        lost = [part for leaf in leaves for part in self.ids_lost(leaf, contracted=False)]
        self._flow.finished(leaves)
        return self.notes.freeze(
            channel_ids=self.channel_ids,
            calls=tuple(dict.fromkeys(self._calls)),
            output=(*(labels.compact() for labels in shown), *lost),
            representation=tuple(part for leaf in leaves for part in self.ids_lost(leaf, contracted=True)),
            found_output=any(map(self.lost, leaves)) or any(not labels.unwrapped for labels in shown),
            used_sizes=tuple(self.sizes.used),
            asked_sizes=dict(self.sizes.asked),
            numbers=tuple(self.sizes.numbers),
            compared=tuple(self.sizes.compared),
            branches=self._flow.branches(),
        )

    def add_product(self, product: Product) -> None:
        """Note multiply-accumulates; of recurrent layers fvcore counts none."""
        if not isinstance(self.modules[self.place], nn.RNNBase):
            self.notes.product(product)

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

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = self.compute(function, args, kwargs or {})
        call = OpCall(function, args, kwargs or {}, output)
        if not self._silent:
            self._operate(self, call)
        channel_dim = self._channel_dim(output) if is_sum(call.name, args) else None
        self._flow.note(call.name, args, call.inputs, call.outputs, self._stack, channel_dim)
        return output

    def _channel_dim(self, tensor: Tensor) -> int | None:
        """The dimension along which a tensor's channels lie, where that is one alone."""
        dims = {self.varies(labels) for labels in self.labels_of(tensor) if not labels.unwrapped}
        return dims.pop()[0] if len(dims) == 1 and len(next(iter(dims))) == 1 else None

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
            self._flow.returned(name, output)
            if leaf is not None:
                self._silent -= 1
                self.sizes.paused = True
                leaf(self, name, module, [*inputs, *named.values()], output)
                self.sizes.paused = False

        return hook


Operation = Callable[[Tracer, OpCall], None]
"""What an operation does to the labels of its tensors."""
