"""What imitation compares: the features before they are pooled, and the main output."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pruneport.compress.hooks import hooks_restored
from pruneport.models.inputs import ExampleInputs, run_on
from pruneport.models.outputs import main_output

__all__ = ["compared", "distance", "feature_place"]


def feature_place(dense: nn.Module, pruned: nn.Module, example: ExampleInputs) -> str | None:
    """Name the module whose output is the last one with more than one position: pixels, or tokens.

    What follows it pools and classifies. It is found by running the networks, so that any pooling will do: a module, a
    function, a class token that is picked.

    Args:
        dense: In eval mode, as is the other.
        pruned: With modules of the same names.
        example: A few inputs.

    Returns:
        The name, or None where no module returns such a tensor, or the pruned network's is of another shape: then the
        output alone can be compared.
    """
    theirs, ours = (_shapes(network, example) for network in (dense, pruned))
    several = [name for name, shape in theirs.items() if _positions(shape) > 1]
    if not several or ours.get(several[-1]) != theirs[several[-1]]:
        return None
    return several[-1]


def compared(network: nn.Module, inputs: ExampleInputs, place: str | None) -> list[Tensor]:
    """The network's features at a place, where there is one, and its main output."""
    if place is None:
        return [main_output(run_on(network, inputs))]
    with _outputs_of(network, place) as seen:
        output = main_output(run_on(network, inputs))
    return [seen[-1], output]


def distance(ours: list[Tensor], theirs: list[Tensor], variances: list[float]) -> Tensor:
    """Mean squared differences, each over the variance of the dense network's, summed; infinities are left out."""
    total = torch.zeros((), device=ours[0].device)
    for mine, wanted, variance in zip(ours, theirs, variances, strict=True):
        known = wanted.isfinite()
        error = torch.where(known, mine.float() - wanted.float(), 0.0).square().sum() / known.sum().clamp_min(1)
        total = total + error / variance
    return total


@contextmanager
def _outputs_of(network: nn.Module, name: str) -> Iterator[list[Tensor]]:
    seen: list[Tensor] = []
    with hooks_restored(network):
        network.get_submodule(name).register_forward_hook(lambda _, __, output: seen.append(output))
        yield seen


@torch.no_grad()
def _shapes(network: nn.Module, example: ExampleInputs) -> dict[str, torch.Size]:
    """Shape of every module's last output that is one tensor of floating point, in the order of the calls' ends."""
    shapes: dict[str, torch.Size] = {}
    with hooks_restored(network):
        for name, module in network.named_modules():

            def hook(_: nn.Module, __: object, output: object, name: str = name) -> None:
                shapes.pop(name, None)
                if isinstance(output, Tensor) and output.is_floating_point():
                    shapes[name] = output.shape

            if name:
                module.register_forward_hook(hook)
        run_on(network, example)
    return shapes


def _positions(shape: torch.Size) -> int:
    """Numbers of one input besides the channels, which are taken to be its longest dimension."""
    return shape[1:].numel() // max(shape[1:]) if len(shape) > 2 and shape[1:].numel() else 0
