"""The proof of a pruning: removing channels must do what zeroing them does.

A consumer that no longer has an input and one whose weights for that input are zero compute the same, and so do
products of queries and keys. So the pruned network is compared with the dense one in which every parameter of a
removed channel is zero. A wrong coupling shows here as a difference, whatever the weights.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pruneport.compress.hooks import running
from pruneport.compress.layers import silence
from pruneport.compress.plan import GroupPlan, positions_kept
from pruneport.errors import PruningError
from pruneport.models.outputs import tensor_leaves

__all__ = ["ForwardError", "check_against_masked", "masked_outputs"]

_TOLERANCE = 1e-3


def check_against_masked(
    dense: nn.Module,
    pruned: nn.Module,
    groups: Sequence[GroupPlan],
    example: Tensor,
    averaged: bool = False,
) -> float | None:
    """Compare ``pruned`` with the masked dense network on ``example`` (B, C, H, W).

    Args:
        dense: The original network.
        pruned: The pruned one.
        groups: What was removed.
        example: Inputs for both.
        averaged: Whether a removed channel is averaged over (see below).

    Returns:
        The largest difference divided by the largest output; None where that would prove nothing: a removed
        channel is averaged over (by a LayerNorm, say), so that removing and zeroing differ by design, or every
        output is zero.

    Raises:
        ForwardError: The pruned network does not run.
        PruningError: The two differ by more than 1e-3.
    """
    with running(pruned) as stack:
        try:
            with torch.inference_mode():
                actual = _floats(pruned(example))
        except Exception as error:
            raise ForwardError(tuple(stack), error) from error
    if averaged:
        return None
    found = _largest_error(actual, masked_outputs(dense, groups, example))
    if found is not None and not found <= _TOLERANCE:  # some untrained networks amplify rounding: look more closely
        finer = example.double()
        with torch.inference_mode():
            actual = _floats(copy.deepcopy(pruned).double()(finer))
        found = _largest_error(actual, masked_outputs(copy.deepcopy(dense).double(), groups, finer))
    if found is not None and not found <= _TOLERANCE:
        raise PruningError(
            f"removing the chosen filters changes the outputs by {found:.2e} of their size beyond what zeroing "
            f"them does (allowed {_TOLERANCE:g}): the network couples its layers in a way that is not understood. "
            "Leave the unusual layers dense with --keep PATTERN."
        )
    return found


def _largest_error(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float | None:
    errors = []
    for ours, masked in zip(actual, expected, strict=True):
        if ours.shape != masked.shape:
            raise PruningError(
                f"the pruned network's output has shape {tuple(ours.shape)}, the dense one's {tuple(masked.shape)}."
            )
        largest = masked.abs().max().item() if masked.numel() else 0
        if largest > 0:
            errors.append((ours - masked).abs().max().item() / largest)
    if any(error != error for error in errors):
        return float("nan")
    return max(errors, default=None)


@torch.inference_mode()
def masked_outputs(dense: nn.Module, groups: Sequence[GroupPlan], example: Tensor) -> list[Tensor]:
    """Outputs of ``dense`` with zeros in all parameters of removed channels; ``dense`` itself is not changed."""
    masked = _untied(dense)
    kept = [(member, group.kept) for group in groups if group.kept is not None for member in group.members]
    for name, axes in positions_kept(kept).items():
        silence(masked, name, axes)
    return _floats(masked(example))


class ForwardError(PruningError):
    """The pruned network's forward raised.

    Attributes:
        stack: The modules that were running, outermost first.
        cause: What it raised, in a line; the exception's type where it says nothing.
    """

    def __init__(self, stack: tuple[str, ...], error: Exception) -> None:
        self.stack = stack
        self.cause = (str(error).splitlines() or [type(error).__name__])[0][:200]
        super().__init__(
            f"the pruned network does not run: in {stack[-1] or 'the network itself'}: {self.cause}. Its forward "
            "relies on a width that was pruned; leave the layers it names dense with --keep PATTERN."
        )


def _untied(network: nn.Module) -> nn.Module:
    """A copy in which no two layers share a parameter, since each is pruned on its own."""
    copied, seen = copy.deepcopy(network), set()
    for module in copied.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter in seen:
                setattr(module, name, nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad))
            seen.add(parameter)
    return copied


def _floats(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in tensor_leaves(outputs) if leaf.is_floating_point()]
