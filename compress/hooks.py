"""Hooks on a network's modules, gone again when they have seen enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

__all__ = ["calls_recorded", "hooks_restored", "running"]


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
