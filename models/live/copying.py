"""A live network, checked and copied; the one that was given is not touched."""

from __future__ import annotations

import copy
import functools
from typing import Any, NamedTuple

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from pruneport.errors import ModelError
from pruneport.models.kinds import check_finite, check_kind
from pruneport.models.outputs import tensor_leaves
from pruneport.models.record import Factory

__all__ = ["Copied", "as_factory", "copy_network"]

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


class Copied(NamedTuple):
    """The copy, and names of the modules whose hooks it was made without."""

    network: nn.Module
    without_hooks: tuple[str, ...] = ()


def copy_network(network: nn.Module) -> Copied:
    """Copy a network to the CPU, in eval mode, without its gradients and without the hooks of whoever watches it.

    DataParallel, DistributedDataParallel and torch.compile are taken off. Hooks that belong to the network stay: its
    modules' own methods, and those of torch.nn, which weight and spectral norms are made of.

    Args:
        network: In any mode, on any device; it is only read.

    Raises:
        ModelError: It is no network, is quantised, scripted or sharded, has no values yet or values that are not finite
            numbers, is of another type than float32, or cannot be copied.
    """
    network = _unwrapped(network)
    check_kind(network)
    memo: dict[int, Any] = {}
    removed: list[str] = []
    kept: list[tuple[nn.Module, str, dict[int, Any]]] = []
    inside = {id(module) for module in network.modules()}
    for name, module in network.named_modules():
        for attribute in _HOOKS:
            hooks = vars(module).get(attribute)
            if hooks:
                own = {key: hook for key, hook in hooks.items() if _belongs(hook, inside)}
                kept.append((module, attribute, own))
                memo[id(hooks)] = type(hooks)()
                if len(own) < len(hooks) and name not in removed:
                    removed.append(name)
        for value in vars(module).values():
            for tensor in tensor_leaves(value):
                if not tensor.is_leaf:  # kept by a forward, or made by an old weight norm: copy.deepcopy refuses it
                    memo[id(tensor)] = tensor.detach().clone()
    try:
        copied = copy.deepcopy(network, memo)
        for module, attribute, own in kept:
            getattr(memo[id(module)], attribute).update(copy.deepcopy(own, memo))
        copied = copied.to("cpu")
    except Exception as error:  # what a network holds may refuse it for any reason
        raise ModelError(
            f"the network cannot be copied: {type(error).__name__}: {error}. Take off what it holds besides layers and "
            "tensors, or build it anew and load its state dict."
        ) from error
    check_finite(copied)
    return Copied(copied.eval(), tuple(name or "the network itself" for name in removed))


def as_factory(given: Factory | nn.Module | None) -> Factory | None:
    """A factory as it is; of a network in memory one that copies it, whatever arguments a plan has for it."""
    if not isinstance(given, nn.Module):
        return given
    network = given
    return lambda **_: copy_network(network).network


def _unwrapped(network: Any) -> Any:
    """The network inside the wrappers that change nothing of what it computes."""
    while True:
        if isinstance(network, DataParallel | DistributedDataParallel):
            network = network.module
        elif isinstance(network, nn.Module) and "_orig_mod" in network._modules:
            network = network.get_submodule("_orig_mod")
        else:
            return network


def _belongs(hook: Any, inside: set[int]) -> bool:
    """Whether a hook is part of what the network computes, and not of somebody who watches it."""
    while isinstance(hook, functools.partial):
        hook = hook.func
    if id(getattr(hook, "__self__", None)) in inside:
        return True
    return f"{getattr(hook, '__module__', '')}.".startswith("torch.nn.")
