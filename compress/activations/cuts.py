"""Cuts: the modules that a network can be run from, and what stands in for all that comes before them.

A *cut* is a module whose output alone decides all that comes after it (a residual block, say).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pruneport.compress.hooks import calls_recorded
from pruneport.models.inputs import ExampleInputs, changed, run_on

__all__ = ["Blank", "find_cuts", "replaced", "zeros_like"]


def find_cuts(network: nn.Module, example: ExampleInputs) -> list[str]:
    """Modules, in order of execution, from whose output alone the rest of the pass can be run.

    Containers are opened, other modules kept whole. Each candidate is tried: with everything before it
    replaced by zeros and its own output replayed, the network's output must be the same.

    Args:
        network: In eval mode.
        example: Inputs.
    """
    outputs: dict[str, Tensor] = {}

    def remember(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                outputs[name] = output.clone()

        return hook

    with calls_recorded(network) as calls, torch.inference_mode():
        for name in _blocks(network):
            network.get_submodule(name).register_forward_hook(remember(name))
        expected = run_on(network, changed(example, Tensor.clone))
    once = [name for name in calls if calls.count(name) == 1 and name in outputs]
    cuts = []
    blank = Blank()
    for index, name in enumerate(once):
        stand_ins = blank.tensors({earlier: outputs[earlier].shape for earlier in once[:index]}, outputs[name].device)
        with torch.inference_mode(), replaced(network, stand_ins | {name: outputs[name].clone()}):
            found = run_on(network, changed(zeros_like(example), Tensor.clone))
        if isinstance(found, Tensor) and isinstance(expected, Tensor) and torch.equal(found, expected):
            cuts.append(name)
    return cuts


class Blank:
    """Zeros that nobody reads, in the place of outputs: all lie in the same memory, which is made and filled once."""

    def __init__(self) -> None:
        self._memory = torch.empty(0)
        self._version = 0

    def tensors(self, shapes: Mapping[str, torch.Size], device: torch.device) -> dict[str, Tensor]:
        """One tensor a name, on the same device in all calls.

        What the network wrote into those before is zero again.
        """
        most = max((shape.numel() for shape in shapes.values()), default=0)
        if most > len(self._memory):
            with torch.inference_mode(False):  # whose tensors do not count what is written into them
                self._memory = torch.zeros(most, device=device)
        elif self._memory._version != self._version:
            self._memory.zero_()
        self._version = self._memory._version
        return {name: self._memory[: shape.numel()].view(shape) for name, shape in shapes.items()}


def zeros_like(inputs: ExampleInputs) -> ExampleInputs:
    """Zeros, which take no memory, for floats: what the rest of a pass is not to read. Whole numbers are little."""

    def blank(tensor: Tensor) -> Tensor:
        return (
            torch.zeros((), dtype=tensor.dtype, device=tensor.device).expand(tensor.shape)
            if tensor.is_floating_point()
            else tensor
        )

    return changed(inputs, blank)


def _blocks(network: nn.Module, prefix: str = "") -> list[str]:
    """Names of the modules that containers hold, in their order."""
    names = []
    for name, child in network.named_children():
        if isinstance(child, nn.Sequential | nn.ModuleList):
            names += _blocks(child, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names


@contextmanager
def replaced(network: nn.Module, outputs: Mapping[str, Tensor]) -> Iterator[None]:
    """Let the named modules return the given tensors instead of computing."""
    modules = []
    try:
        for name, output in outputs.items():
            module = network.get_submodule(name)
            module.forward = partial(_returned, output)
            modules.append(module)
        yield
    finally:
        for module in modules:
            del module.forward


def _returned(output: Tensor, *arguments: Any, **named: Any) -> Tensor:
    return output
