"""The pruned network again, from its plan and weights: nothing is traced, and shrinking moves no memory."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import nullcontext

from torch import Tensor, nn

from pruneport.compress.surgery.apply import apply_plan
from pruneport.compress.surgery.plan import Plan
from pruneport.compress.surgery.plan_bounds import Shapes, dense_elements
from pruneport.errors import BundleError
from pruneport.models.checkpoints.checkpoint import with_versions
from pruneport.models.parts import set_part
from pruneport.models.record import Factory
from pruneport.models.size_limit import SizeLimit
from pruneport.models.source import build

__all__ = ["pruned_copy", "rebuild_network"]

_FREE, _MOST_GROWTH = 2**26, 256  # numbers that any network may have; how many times as many the dense one may


def rebuild_network(plan: Plan, weights: Mapping[str, Tensor], factory: Factory | None = None) -> nn.Module:
    """Build the dense architecture, shrink it by the plan and give it ``weights``.

    Args:
        plan: Names the source and what is kept.
        weights: The state dict of the pruned network; its tensors become the network's own.
        factory: Builds the dense architecture in place of the one that the plan names.

    Returns:
        The network in eval mode.

    Raises:
        BundleError: The plan, or a type of the weights, does not fit the network.
        RuntimeError: The weights do not fit it.
        SourceError: The factory fails.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    with nullcontext() if factory is not None else SizeLimit(_most_numbers(plan, shapes)):
        network = build(plan.source, factory, initialise=False)
    _drop_values(network)
    apply_plan(network, plan.groups, plan.attributes, plan.sizes, plan.branches)
    for name, tensor in network.state_dict().items():
        if name in weights and weights[name].dtype != tensor.dtype:
            raise BundleError(
                f"the weights do not fit the network: {name} is {weights[name].dtype}, which there is {tensor.dtype}. "
                "Load it with the factory it was made with."
            )
    _take_values(network, weights)
    return network.eval()


def pruned_copy(dense: nn.Module, plan: Plan, weights: Mapping[str, Tensor]) -> nn.Module:
    """The same from the dense network at hand, which is left as it is; ``weights`` are copied.

    Raises:
        BundleError: The plan does not fit the network.
        RuntimeError: The weights do not fit it.
    """
    network = copy.deepcopy(dense)
    apply_plan(network, plan.groups, plan.attributes, plan.sizes, plan.branches)
    network.load_state_dict(with_versions(network, weights))
    return network


def _most_numbers(plan: Plan, shapes: Shapes) -> int:
    """What building the dense network may make: several times its weights, but no network far beyond what is left.

    Factories make some tensors twice, and output layers that are replaced.
    """
    left = dense_elements((), shapes)
    dropped = sum(branch.params for branch in plan.branches)
    return min(4 * (dense_elements(plan.groups, shapes) + dropped), _MOST_GROWTH * left) + _FREE


def _drop_values(network: nn.Module) -> None:
    """Leave only the shapes of what the weights file holds: shrinking then moves no memory; ties are kept."""
    saved = {id(tensor) for tensor in network.state_dict(keep_vars=True).values()}
    shells: dict[int, tuple[Tensor, Tensor]] = {}  # with the original, so that no other tensor gets its id
    for module in network.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and id(tensor) in saved:
                    shells.setdefault(id(tensor), (tensor, _shell(tensor)))
                    tensors[name] = shells[id(tensor)][1]  # type: ignore[assignment]


def _shell(tensor: Tensor) -> Tensor:
    empty = tensor.detach().to("meta")
    return nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _take_values(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Make ``state``'s tensors the network's own; what was one parameter under two names stays one."""
    names: dict[int, list[str]] = {}
    tied = list(network.named_parameters(remove_duplicate=False))
    for name, parameter in tied:
        names.setdefault(id(parameter), []).append(name)
    network.load_state_dict(with_versions(network, state), assign=True)
    for first, *others in names.values():
        for other in others:
            set_part(network, other, network.get_parameter(first))
