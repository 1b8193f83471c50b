"""The proof of a pruning: removing channels must do what zeroing them does.

A consumer that no longer has an input and one whose input is zero compute the same. So the pruned network
is compared with the dense one whose consumers see zeros where channels were removed. A wrong coupling shows
here as a difference, whatever the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pruneport.compress.hooks import hooks_restored
from pruneport.compress.layers import axis_size
from pruneport.compress.plan import GroupPlan, positions_kept
from pruneport.errors import PruningError
from pruneport.models.outputs import tensor_leaves

__all__ = ["check_against_masked", "masked_outputs"]

_TOLERANCE = 1e-3
_AVERAGING = (nn.LayerNorm, nn.GroupNorm)


def check_against_masked(
    dense: nn.Module, pruned: nn.Module, groups: Sequence[GroupPlan], example: Tensor
) -> float | None:
    """Compare ``pruned`` with the masked dense network on ``example`` (B, C, H, W).

    Returns:
        The largest difference divided by the largest output; None where that would prove nothing: a removed
        channel passes a norm that averages over channels, so that removing and zeroing differ by design, or
        every output is zero.

    Raises:
        PruningError: The pruned network does not run, or the two differ by more than 1e-3.
    """
    try:
        with torch.inference_mode():
            actual = _floats(pruned(example))
    except Exception as error:
        raise PruningError(
            f"the pruned network does not run: {error}. Its forward relies on a width that was pruned; leave the "
            "layers it names dense with --keep PATTERN."
        ) from error
    modules = dict(dense.named_modules())
    averaged = (
        isinstance(modules.get(member.module), _AVERAGING)
        for group in groups
        if group.kept is not None
        for member in group.members
    )
    if any(averaged):
        return None
    expected = masked_outputs(dense, groups, example)
    errors = []
    for ours, masked in zip(actual, expected, strict=True):
        if ours.shape != masked.shape:
            raise PruningError(
                f"the pruned network's output has shape {tuple(ours.shape)}, the dense one's {tuple(masked.shape)}."
            )
        largest = masked.abs().max().item()
        if largest > 0:
            errors.append((ours - masked).abs().max().item() / largest)
    if not errors:
        return None
    if not all(error <= _TOLERANCE for error in errors):
        raise PruningError(
            f"removing the chosen filters changes the outputs by {max(errors):.2e} of their size beyond what zeroing "
            f"them does (allowed {_TOLERANCE:g}): the network couples its layers in a way that is not understood. "
            "Leave the unusual layers dense with --keep PATTERN."
        )
    return max(errors)


@torch.inference_mode()
def masked_outputs(dense: nn.Module, groups: Sequence[GroupPlan], example: Tensor) -> list[Tensor]:
    """Outputs of ``dense`` where every consumer sees zeros in place of removed channels; nothing is changed."""
    kept = [(member, group.kept) for group in groups if group.kept is not None for member in group.members]
    modules = dict(dense.named_modules())
    with hooks_restored(dense):
        for name, axes in positions_kept(kept).items():
            if "in" in axes and name in modules:
                layer = modules[name]
                mask = torch.zeros(axis_size(layer, "in"))
                mask[axes["in"]] = 1
                layer.register_forward_pre_hook(_masking_hook(mask, -1 if isinstance(layer, nn.Linear) else 1))
        return _floats(dense(example))


def _masking_hook(mask: Tensor, dim: int) -> Any:
    def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        shape = [1] * inputs[0].ndim
        shape[dim] = -1
        return (inputs[0] * mask.to(inputs[0]).reshape(shape), *inputs[1:])

    return hook


def _floats(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in tensor_leaves(outputs) if leaf.is_floating_point()]
