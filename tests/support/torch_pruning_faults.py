"""How tests ask torch-pruning itself to prune a small network, and say so when a later release does it right."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, Literal

import torch
import torch_pruning as tp
from torch import Tensor, nn

__all__ = ["dependency_graph", "outcome", "pruned_by", "removed_from", "still_a_fault", "without"]

Outcome = Literal["right", "wrong", "raises"]


def dependency_graph(network: nn.Module, example: Tensor) -> Any:
    """torch-pruning's own graph, by its own tracing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of parameters outside layers
        return tp.DependencyGraph().build_dependency(network.eval(), example_inputs=example)


def removed_from(network: nn.Module, example: Tensor, layer: str, units: Sequence[int]) -> nn.Module:
    """A copy without the output channels, removed by torch-pruning's graph and its removal functions."""
    pruned = copy.deepcopy(network).eval()
    graph = dependency_graph(pruned, example)
    root = pruned.get_submodule(layer)
    group = graph.get_pruning_group(root, graph.get_pruner_of_module(root).prune_out_channels, list(units))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of gradients that weights made from others lack
        group.prune()
    return pruned


def without(network: nn.Module, layer: str, units: Sequence[int]) -> nn.Module:
    """A dense copy in which the output channels of a layer are zero: nothing of torch-pruning is in it."""
    zeroed = copy.deepcopy(network).eval()
    root = zeroed.get_submodule(layer)
    with torch.no_grad():
        for tensor in (root.weight, root.bias):
            if tensor is not None:
                tensor[list(units)] = 0
    return zeroed


def outcome(
    network: nn.Module, example: Tensor, layer: str, units: Sequence[int], expected: nn.Module | None = None
) -> Outcome:
    """Whether torch-pruning's removal gives the outputs of the dense network with zeros in their place."""
    network.eval()
    wanted = (without(network, layer, units) if expected is None else expected)(example)
    try:
        found = removed_from(network, example, layer, units)(example)
    except (RuntimeError, IndexError, AssertionError, KeyError, TypeError, ValueError):
        return "raises"
    return "right" if torch.allclose(found, wanted, rtol=1e-4, atol=1e-6) else "wrong"


def pruned_by(network: nn.Module, example: Tensor, **options: Any) -> nn.Module:
    """The network after one step of torch-pruning's pruner, by magnitude, with dicts of its own."""
    fresh: dict[str, Any] = {"in_channel_groups": {}, "out_channel_groups": {}}
    importance = tp.importance.MagnitudeImportance(p=1)
    tp.pruner.BasePruner(network.eval(), example, importance=importance, **{**fresh, **options}).step()
    return network


def still_a_fault(fault: bool, what: str, reconsider: str) -> None:
    """Fail once torch-pruning has mended a fault, and name what we keep because of it."""
    assert fault, f"torch-pruning {version('torch-pruning')} mended this: {what}. Reconsider {reconsider}."
