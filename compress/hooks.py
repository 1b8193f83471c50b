"""Hooks on a network's modules, gone again when they have seen enough."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pruneport.models.outputs import tensor_leaves

__all__ = ["calls_recorded", "hooks_restored", "inputs_recorded", "norms_recorded", "running"]

_TAKE_A_SHAPE = {Tensor.reshape_as, Tensor.view_as, Tensor.expand_as}  # of their second tensor, not its values


@contextmanager
def hooks_restored(network: nn.Module) -> Iterator[None]:
    """Take away the hooks added meanwhile: tracers leave theirs behind where a forward raises.

    What torch keeps beside a hook, such as that it takes keyword arguments, goes with it: it is pickled with the
    network, and would be said of another hook of the same number in another process.
    """
    kept = [(module, set(module._forward_hooks), set(module._forward_pre_hooks)) for module in network.modules()]
    try:
        yield
    finally:
        for module, after, before in kept:
            for key in set(module._forward_hooks) - after:
                del module._forward_hooks[key]
                module._forward_hooks_with_kwargs.pop(key, None)
                module._forward_hooks_always_called.pop(key, None)
            for key in set(module._forward_pre_hooks) - before:
                del module._forward_pre_hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)


@contextmanager
def inputs_recorded(network: nn.Module, name: str) -> Iterator[list[Tensor]]:
    """Yield a list that fills with what the named layer reads, as its first argument."""
    seen: list[Tensor] = []
    with hooks_restored(network):
        network.get_submodule(name).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        yield seen


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
    """Yield a dictionary that holds, at the end, the BatchNorm behind each convolution or linear layer, by its name.

    It has statistics, the layer's width, and is the only reader of the layer's output, reshaped or as it is; both run
    once. Run the network without inference mode, whose tensors do not tell when something in place came between.
    """
    made: dict[str, tuple[Tensor, int]] = {}
    norms: dict[str, Any] = {}
    calls: Counter[nn.Module] = Counter()
    reads = _Reads()

    def remember(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: Any, output: Tensor) -> None:
            calls[layer] += 1
            made[name] = (output, output._version)
            reads.count[_place(output)] = 0

        return hook

    def read(norm: Any, inputs: tuple[Tensor, ...]) -> None:
        calls[norm] += 1
        name = next((name for name, (output, _) in made.items() if _place(output) == _place(inputs[0])), None)
        if name is not None and norm.affine and norm.running_mean is not None:
            norms[name] = norm

    found: dict[str, Any] = {}
    with hooks_restored(network), reads:
        for name, module in network.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.register_forward_pre_hook(read)
            elif isinstance(module, nn.Conv2d | nn.Linear):
                module.register_forward_hook(remember(name))
        yield found
    for name, norm in norms.items():
        layer, (output, version) = network.get_submodule(name), made[name]
        once = calls[layer] == calls[norm] == reads.count[_place(output)] == 1
        if once and output._version == version and norm.num_features == len(layer.weight):  # type: ignore[arg-type]
            found[name] = norm


class _Reads(TorchFunctionMode):
    """Counts, by the memory that a tensor lies in, the functions that make something new of it."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[int] = Counter()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if own := {_place(leaf) for leaf in tensor_leaves(result)}:
            values = args[:1] if function in _TAKE_A_SHAPE else [args, kwargs]
            self.count.update({_place(leaf) for leaf in tensor_leaves(values)} - own)
        return result


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


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
