"""Hooks on a network's modules, gone again when they have seen enough."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

__all__ = ["calls_recorded", "hooks_restored", "norms_recorded", "running"]


@contextmanager
def hooks_restored(network: nn.Module) -> Iterator[None]:
    """Take away the hooks added meanwhile: tracers leave theirs behind where a forward raises."""
    kept = [(module, set(module._forward_hooks), set(module._forward_pre_hooks)) for module in network.modules()]
    try:
        yield
    finally:
        for module, after, before in kept:
            for hooks, known in ((module._forward_hooks, after), (module._forward_pre_hooks, before)):
                for key in set(hooks) - known:
                    del hooks[key]


@contextmanager
def calls_recorded(network: nn.Module) -> Iterator[list[str]]:
    """Yield a list that fills with module names in the order in which their calls end."""
    calls: list[str] = []

    def remember(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            calls.append(name)

        return hook

    with hooks_restored(network):
        for name, module in network.named_modules():
            module.register_forward_hook(remember(name))
        yield calls


@contextmanager
def norms_recorded(network: nn.Module) -> Iterator[dict[str, Any]]:
    """Yield a dictionary that fills with the BatchNorm, with statistics, right behind each convolution or linear layer.

    Left out are layers and norms that run more than once, since they have no one partner. Run the network without
    inference mode, whose tensors do not tell when something in place came between.
    """
    found: dict[str, Any] = {}
    made: dict[int, tuple[str, weakref.ref[Tensor], int]] = {}
    seen: set[nn.Module] = set()

    def remember(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: Any, output: Tensor) -> None:
            if layer in seen:
                found.pop(name, None)
            else:
                made[id(output)] = (name, weakref.ref(output), output._version)
            seen.add(layer)

        return hook

    def read(norm: Any, inputs: tuple[Tensor, ...]) -> None:
        if norm in seen:
            for other in [key for key, value in found.items() if value is norm]:
                del found[other]
        elif id(inputs[0]) in made and norm.affine and norm.running_mean is not None:
            name, output, version = made[id(inputs[0])]
            if output() is inputs[0] and inputs[0]._version == version:
                found[name] = norm
        seen.add(norm)

    with hooks_restored(network):
        for name, module in network.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.register_forward_pre_hook(read)
            elif isinstance(module, nn.Conv2d | nn.Linear):
                module.register_forward_hook(remember(name))
        yield found


@contextmanager
def running(network: nn.Module) -> Iterator[list[str]]:
    """Yield the names of the modules that are running, outermost first; where a forward raises, they stay."""
    stack: list[str] = [""]

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: stack.append(name)

    def leave(*_: Any) -> None:
        stack.pop()

    with hooks_restored(network):
        for name, module in network.named_modules():
            if name:
                module.register_forward_pre_hook(enter(name))
                module.register_forward_hook(leave)
        yield stack
