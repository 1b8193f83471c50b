"""torch-pruning's dependency graph, filled by our tracer.

torch-pruning keeps its structure, its walk and all that is built on them: groups, importances, pruners, histories. What
is ours is where the graph comes from and how a group is removed. Between the layers of every coupled group stands a
*hub*: a node whose indices are the group's units. Each axis of a layer is joined to the hubs of its groups, and the
mappings on the way go from positions to units and back. So a walk from any layer ends at exactly the layers of the
group, whatever lies between them in the forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any, Literal

import torch
import torch_pruning
from torch import Tensor, nn
from torch_pruning.dependency import Node

from pruneport.compress.graph.coupled_units import find_coupling
from pruneport.compress.graph.coupling import Coupling, Key
from pruneport.compress.graph.dependency.channel_group import ChannelGroup
from pruneport.compress.graph.dependency.nodes import (
    ChannelDependency,
    Hub,
    HubPruner,
    TablePruner,
    UnwrappedAxis,
    also_called,
    in_order,
    to_positions,
    to_units,
)
from pruneport.compress.graph.dependency.shrinking import Shrinking
from pruneport.compress.graph.groups import Group, group_units
from pruneport.errors import PruningError
from pruneport.models.inputs import ExampleInputs
from pruneport.models.parts import part

__all__ = ["ChannelGraph", "dependency_graph"]


def dependency_graph(
    model: nn.Module,
    example_inputs: ExampleInputs,
    *,
    attention: Literal["width", "heads"] = "width",
    whole_channel_groups: bool = True,
) -> ChannelGraph:
    """Build a dependency graph that code written for torch-pruning takes in place of its own.

    Args:
        model: The network. It is run once and left as it is, whatever its mode.
        example_inputs: A tensor, a list or tuple of arguments, or a dict of named arguments.
        attention: Whether attention heads lose width, or go as a whole.
        whole_channel_groups: Whether channel groups of a convolution go as a whole where there are more than two of
            fewer than 16 channels; else each loses as many channels.

    Returns:
        The graph; groups from its ``get_pruning_group`` and ``get_all_groups`` shrink ``model`` in place.

    Raises:
        PruningError: The network does not run, or has no layers that could be pruned.

    Example:
        >>> import torch, torch_pruning
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 4, 3))
        >>> graph = dependency_graph(network, torch.zeros(1, 3, 16, 16))
        >>> group = graph.get_pruning_group(network[0], torch_pruning.prune_conv_out_channels, [0, 5])
        >>> group.prune()
        >>> network[1].in_channels
        6
    """
    graph = ChannelGraph(attention=attention, whole_channel_groups=whole_channel_groups)
    return graph.build_dependency(model, example_inputs)


class ChannelGraph(torch_pruning.DependencyGraph):  # type: ignore[misc]
    """A dependency graph whose couplings were found by following every channel (see ``tracer``).

    ``get_pruning_group``, ``get_all_groups``, ``check_pruning_group``, ``pruning_history`` and
    ``load_pruning_history`` are used as torch-pruning documents them.

    Attributes:
        coupling: Which positions must be removed together.
        groups: The coupled groups, in the order in which their producers run.
        shrinking: The network while it loses units of them.
    """

    coupling: Coupling
    groups: list[Group]
    shrinking: Shrinking

    def __init__(self, *, attention: Literal["width", "heads"] = "width", whole_channel_groups: bool = True) -> None:
        super().__init__()
        self._attention, self._whole_channel_groups = attention, whole_channel_groups
        self._known: Coupling | None = None
        self._own_pruners: dict[nn.Module, Any] = {}

    @classmethod
    def of(cls, network: nn.Module, coupling: Coupling) -> ChannelGraph:
        """The graph of a network, or of a copy of it, whose coupling is known: nothing is traced."""
        graph = cls()
        graph._known = coupling
        return graph.build_dependency(network, ())

    def build_dependency(
        self,
        model: nn.Module,
        example_inputs: ExampleInputs,
        forward_fn: Callable[[nn.Module, Any], Any] | None = None,
        output_transform: Callable[[Any], Any] | None = None,
        unwrapped_parameters: Any = None,
        customized_pruners: Any = None,
        ignored_layers: Sequence[nn.Module] | None = None,
        ignored_params: Sequence[nn.Parameter] | None = None,
        verbose: bool = True,
    ) -> ChannelGraph:
        """Trace the network and fill the graph.

        Args:
            model: The network. It is run once and left as it is, whatever its mode.
            example_inputs: A tensor, a list or tuple of arguments, or a dict of named arguments.
            forward_fn: Runs the network on the example inputs.
            output_transform: Not needed: outputs are found in whatever holds them.
            unwrapped_parameters: Not needed: parameters outside of layers, and buffers, are followed, too.
            customized_pruners: Must be None: modules of other types are looked into.
            ignored_layers: Layers that are no root of a group.
            ignored_params: Parameters that must keep their sizes: what they are coupled to keeps its width.
            verbose: As torch-pruning has it.

        Raises:
            PruningError: The network does not run, or has no layers that could be pruned.
        """
        if customized_pruners:
            raise PruningError(
                "customized_pruners do not fit this graph, which shrinks layers by its own table: leave them out. "
                "Modules of other types are looked into; how to add a layer is in docs/extending.md."
            )
        with torch.enable_grad():  # torch-pruning insists on it
            super().build_dependency(
                model,
                example_inputs,
                forward_fn=forward_fn,
                ignored_layers=list(ignored_layers or ()),
                ignored_params=list(ignored_params or ()),
                verbose=verbose,
            )
        return self

    def get_pruning_group(self, module: Any, pruning_fn: Callable[..., Any], idxs: Any) -> ChannelGroup:
        """The group that must lose channels together with some of a layer.

        Args:
            module: The layer, or a parameter outside of layers.
            pruning_fn: torch-pruning's function for the layer's outputs or inputs.
            idxs: Positions there; the other positions of the same units go with them.

        Raises:
            PruningError: A position is not there.
            ValueError: The module is not in the graph.
        """
        if isinstance(module, Tensor):
            axes = [axis for axis in self._own_pruners if isinstance(axis, UnwrappedAxis)]
            module = next((axis for axis in axes if part(self.model, axis.name) is module), module)
            pruning_fn = self._function(module, "out")
        given = [idxs] if isinstance(idxs, Integral) else idxs.tolist() if isinstance(idxs, Tensor) else idxs
        listed: list[int] = list(dict.fromkeys(map(int, given)))
        self._check_positions(module, pruning_fn, listed)
        walked = super().get_pruning_group(module, pruning_fn, listed)
        group = ChannelGroup()
        group._group, group._DG = [in_order(item, listed) for item in walked._group], self
        return group

    def get_all_groups(self, ignored_layers: Any = (), root_module_types: Any = None) -> Iterator[ChannelGroup]:
        """All groups that can be pruned, each with all its positions.

        Args:
            ignored_layers: Layers whose outputs stay.
            root_module_types: Types of layers to begin at: convolutions and linear layers where it is not given.
        """
        roots = root_module_types or (torch_pruning.ops.TORCH_CONV, torch_pruning.ops.TORCH_LINEAR)
        for group in super().get_all_groups(list(ignored_layers), tuple(roots)):
            if group.units and not any(map(self.shrinking.why_dense, group.units)):
                yield group

    def check_pruning_group(self, group: ChannelGroup) -> bool:
        """Whether the group can be pruned, and something of every layer is left."""
        return bool(super().check_pruning_group(group)) and not self.shrinking.why_not(group.units)

    def group_of(self, group: Group, units: Iterable[int]) -> ChannelGroup:
        """The group to prune for some units of one of ``groups``."""
        member = next((member for member in group.members if member.axis == "out"), group.members[0])
        module = self._modules[member.module, member.axis]
        positions = self.shrinking.axes.positions((member.module, member.axis), units)
        return self.get_pruning_group(module, self._function(module, member.axis), positions)

    def units_at(self, group: ChannelGroup) -> list[int]:
        """The unit at each position that the group was asked for with; 0 where the position can never go."""
        root = group[0]
        keys = [dep.key for dep in root.dep.target.dependencies if dep.is_triggered_by(root.dep.trigger)]
        there = self.shrinking.axes.units(keys[0]) if keys else [0] * (max(root.idxs, default=0) + 1)
        units = dict(zip(root.root_idxs, (there[position] for position in root.idxs), strict=True))
        return [units[place] for place in sorted(units)]

    def get_pruner_of_module(self, module: nn.Module) -> Any:
        """What says how many channels a layer has, and by which functions its sides are named."""
        return self._own_pruners.get(module) or super().get_pruner_of_module(module)

    def _detect_unwrapped_parameters(self, unwrapped_parameters: Any) -> tuple[dict[Any, str], list[Any]]:
        return {}, []  # the tracer follows them

    def _trace(
        self, model: nn.Module, example_inputs: Any, forward_fn: Any, output_transform: Any
    ) -> dict[nn.Module, Node]:
        """The nodes: layers in the order in which they run, unwrapped tensors, then the hubs."""
        self.coupling = self._known or self._traced(model, example_inputs, forward_fn)
        self.groups = group_units(model, self.coupling)
        self.shrinking = Shrinking(model, self.coupling, self.groups)
        self._modules: dict[Key, nn.Module] = {}
        modules, order = dict(model.named_modules()), self.coupling.order
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        for name, axis in sorted(self.coupling.sizes, key=lambda key: order.get(key[0], len(order))):
            module = modules.get(name) or UnwrappedAxis(name, axis)
            self._modules[name, axis] = module
            self._module2name.setdefault(module, name)
            if isinstance(module, UnwrappedAxis | nn.MultiheadAttention):
                self._own_pruners[module] = pruner = TablePruner()
                self._in_channel_pruning_fn.add(pruner.prune_in_channels)
                self._out_channel_pruning_fn.add(pruner.prune_out_channels)
        self._ignore(tensors)
        nodes = {module: Node(module, None, self._module2name[module]) for module in self._modules.values()}
        for group in self.groups:
            hub = Hub(group)
            self._module2name[hub] = f"units of {group.name}"
            self._own_pruners[hub] = HubPruner()
            nodes[hub] = Node(hub, None, self._module2name[hub])
        return nodes

    def _traced(self, network: nn.Module, example: Any, forward: Any) -> Coupling:
        """The coupling of a network, which is run in eval mode and left in the modes it was in."""
        training = {module: module.training for module in network.modules()}
        network.eval()
        try:
            return find_coupling(network, example, self._attention == "heads", self._whole_channel_groups, forward)
        finally:
            for module, mode in training.items():
                module.training = mode

    def _ignore(self, tensors: Mapping[str, Tensor]) -> None:
        """What ignored parameters are coupled to stays."""
        ignored = [name for name, tensor in tensors.items() if any(tensor is other for other in self.ignored_params)]
        for key in self.coupling.sizes:
            layer, axis = key
            if (axis.startswith("dim") and layer in ignored) or (axis != "in" and _parameter_of(layer, ignored)):
                self.shrinking.forbid(self.shrinking.axes.units(key))

    def _build_dependency(self, module2node: Mapping[nn.Module, Node]) -> None:
        """Join every axis of a group's layers to the group's hub, both ways."""
        axes = self.shrinking.axes
        for hub, node in module2node.items():
            if isinstance(hub, Hub):
                through = self._own_pruners[hub].prune_out_channels
                for member in hub.group.members:
                    key = member.module, member.axis
                    layer = module2node[self._modules[key]]
                    side = self._function(layer.module, member.axis)
                    to_hub = ChannelDependency(side, through, layer, node, to_units(axes, key, hub.units))
                    from_hub = ChannelDependency(through, side, node, layer, to_positions(axes, key))
                    to_hub.key, to_hub.others = key, also_called(layer.module, member.axis)
                    layer.dependencies.append(to_hub)
                    node.dependencies.append(from_hub)
                    before, after = (node, layer) if member.axis == "in" else (layer, node)
                    before.add_output(after)
                    after.add_input(before)

    def _function(self, module: nn.Module, axis: str) -> Callable[..., Any]:
        """torch-pruning's name for an axis of a layer: the function that would shrink it."""
        pruner = self.get_pruner_of_module(module)
        chosen: Callable[..., Any] = pruner.prune_in_channels if axis == "in" else pruner.prune_out_channels
        return chosen

    def _check_positions(self, module: Any, pruning_fn: Callable[..., Any], positions: Sequence[int]) -> None:
        """Raise where a position is not on the axis that the function names."""
        node = self.module2node.get(module)
        keys = {dep.key for dep in node.dependencies if dep.is_triggered_by(pruning_fn)} if node is not None else ()
        for key in keys - {None} if keys else ():
            size = len(self.shrinking.axes.units(key))
            if wrong := [position for position in positions if not 0 <= position < size]:
                raise PruningError(
                    f"{key[0]} has {size} channels ({key[1]}), and no {', '.join(map(str, wrong[:10]))}; expected "
                    f"positions from 0 to {size - 1} of the network as it is now."
                )


def _parameter_of(layer: str, names: Iterable[str]) -> bool:
    return any(name.rpartition(".")[0] == layer for name in names)
