"""Which channel index of which layer is coupled to which, as torch-pruning's dependencies carry them."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch_pruning._helpers import _HybridIndex

from pruneport.compress.hooks import calls_recorded
from pruneport.compress.record import Axis
from pruneport.compress.splits import Graph
from pruneport.errors import PruningError
from pruneport.models.outputs import tensor_leaves

__all__ = ["Coupling", "find_coupling"]


@dataclass
class Coupling:
    """Elements (one position on one axis of one layer) and the pairs that must be removed together.

    Attributes:
        offsets: Number of an axis's first element.
        sizes: Elements of an axis.
        pairs: Coupled elements.
        added: Elements whose channels pass an addition of two tensors.
        output: Elements whose channels leave the network.
        broken: Elements whose way could not be followed, and why.
        order: Place of each module in the order of execution.
    """

    offsets: dict[tuple[str, Axis], int] = field(default_factory=dict)
    sizes: dict[tuple[str, Axis], int] = field(default_factory=dict)
    total: int = 0
    pairs: list[tuple[int, int]] = field(default_factory=list)
    added: set[int] = field(default_factory=set)
    output: set[int] = field(default_factory=set)
    broken: dict[int, str] = field(default_factory=dict)
    order: dict[str, int] = field(default_factory=dict)

    def register(self, key: tuple[str, Axis], size: int) -> int:
        """Number the elements of an axis; return the first."""
        if key not in self.offsets:
            self.offsets[key] = self.total
            self.sizes[key] = size
            self.total += size
        return self.offsets[key]


def find_coupling(network: nn.Module, example: Tensor) -> Coupling:
    """Trace the network once and follow every output channel; weights and gradient flags stay as they were.

    Raises:
        PruningError: The network's operations cannot be traced.
    """
    graph, order = _trace(network, example)
    names = {module: name for name, module in network.named_modules()}
    names.update({parameter: name for name, parameter in network.named_parameters()})
    coupling = _couple(graph, names)
    coupling.order = order
    return coupling


def _trace(network: nn.Module, example: Tensor) -> tuple[Any, dict[str, int]]:
    """Return torch-pruning's graph and each module's place in the order of execution."""
    flags = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    for parameter, _ in flags:
        parameter.requires_grad_(parameter.is_floating_point())
    try:
        with calls_recorded(network) as calls, torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = Graph()
            # Multiplying by one gives every output an operation of its own, so that tp marks it as an output.
            graph.build_dependency(
                network,
                example,
                forward_fn=lambda module, inputs: module(inputs),  # else it first tries one argument an image
                output_transform=lambda out: [leaf * 1 for leaf in tensor_leaves(out) if leaf.grad_fn is not None],
                verbose=False,
            )
            return graph, {name: place for place, name in enumerate(dict.fromkeys(calls))}
    except Exception as error:
        raise PruningError(
            f"the network's dependencies cannot be traced: {type(error).__name__}: {error}. Its forward must "
            "accept one tensor and be differentiable from the input to every output."
        ) from error
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _couple(graph: Any, names: Mapping[Any, str]) -> Coupling:
    coupling = Coupling()
    seen: set[int] = set()
    for module, node in list(graph.module2node.items()):
        if module not in names or not isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
            continue
        pruner = graph.get_pruner_of_module(module)
        size = int(pruner.get_out_channels(module))
        start = coupling.register((names[module], _axis(pruner, pruner.prune_out_channels)), size)
        if not all(start + position in seen for position in range(size)):
            _follow(graph, names, coupling, node, pruner.prune_out_channels, start, size, seen)
    return coupling


def _follow(
    graph: Any,
    names: Mapping[Any, str],
    coupling: Coupling,
    root: Any,
    prune: Callable[..., Any],
    start: int,
    size: int,
    seen: set[int],
) -> None:
    """Carry every output index of ``root`` along the dependencies until nothing new is reached."""
    reached: dict[tuple[int, Callable[..., Any]], set[tuple[int, int]]] = defaultdict(set)
    pending = [(root, prune, [_HybridIndex(idx=i, root_idx=i) for i in range(size)])]
    while pending:
        node, handler, indices = pending.pop()
        known = reached[id(node), handler]
        fresh = [index for index in indices if (index.idx, index.root_idx) not in known]
        if not fresh:
            continue
        known.update((index.idx, index.root_idx) for index in fresh)
        _record(graph, names, coupling, node, handler, fresh, start, seen)
        for dependency in node.dependencies:
            if dependency.is_triggered_by(handler):
                carried = fresh
                for mapping in dependency.index_mapping:
                    carried = carried if mapping is None else mapping(carried)
                if carried:
                    pending.append((dependency.target, dependency.handler, carried))


def _record(
    graph: Any,
    names: Mapping[Any, str],
    coupling: Coupling,
    node: Any,
    handler: Callable[..., Any],
    indices: list[Any],
    start: int,
    seen: set[int],
) -> None:
    module = node.module
    if module not in names:
        roots = {start + index.root_idx for index in indices}
        if isinstance(module, tp.ops._OutputOp):
            coupling.output |= roots
        elif _joins_by_addition(node):
            coupling.added |= roots
        return
    if isinstance(module, nn.PReLU) and module.num_parameters == 1:
        return  # one slope for all channels
    pruner = graph.get_pruner_of_module(module)
    pruner.pruning_dim = node.pruning_dim
    axis = _axis(pruner, handler)
    size = pruner.get_in_channels(module) if axis == "in" else pruner.get_out_channels(module)
    base = coupling.register((names[module], axis), int(size or 0))
    for index in indices:
        if index.root_idx is None or not 0 <= index.idx < int(size or 0):
            coupling.broken[start + (index.root_idx or 0)] = (
                f"the way of its channels to {names[module]} is not understood (index {index.idx} of {size})"
            )
            continue
        coupling.pairs.append((start + index.root_idx, base + index.idx))
        seen.add(base + index.idx)


def _joins_by_addition(node: Any) -> bool:
    operation = str(getattr(node.module, "_grad_fn", ""))
    return operation.startswith(("AddBackward", "SubBackward")) and len({id(n) for n in node.inputs}) > 1


def _axis(pruner: Any, handler: Callable[..., Any]) -> Axis:
    if pruner.prune_out_channels == pruner.prune_in_channels:
        return "channels"
    return "out" if handler == pruner.prune_out_channels else "in"
