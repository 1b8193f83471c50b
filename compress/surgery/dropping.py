"""Residual branches dropped: what ran in them gives zeros, and has no weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pruneport.compress.group_records import DroppedBranch
from pruneport.errors import BundleError
from pruneport.models.outputs import tensor_leaves
from pruneport.models.parts import owner_of, set_part

__all__ = ["Absent", "drop_branches"]


class Absent(nn.Module):
    """Stands where a module of a dropped branch was: gives zeros of its first input's shape.

    So the addition at the branch's end adds nothing, whatever lies between, and no forward has to change. An export
    leaves all of it out.

    Args:
        outputs: Length of the tuple that the module returned, of which all but the first are None; 0 for a tensor.
    """

    def __init__(self, outputs: int = 0) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, *inputs: Any, **named: Any) -> Tensor | tuple[Tensor | None, ...]:
        """Zeros."""
        zeros = torch.zeros_like(tensor_leaves([*inputs, *named.values()])[0])
        return (zeros, *[None] * (self.outputs - 1)) if self.outputs else zeros

    def extra_repr(self) -> str:
        """What printing the network shows of it."""
        return f"outputs={self.outputs}" if self.outputs else ""


def drop_branches(network: nn.Module, dropped: Sequence[DroppedBranch]) -> None:
    """Replace the modules and parameters of dropped branches, in place.

    Raises:
        BundleError: The network has no such modules.
    """
    for branch in dropped:
        try:
            for name, outputs in branch.modules.items():
                set_part(network, name, Absent(outputs).train(network.get_submodule(name).training))
            for name in branch.parameters:
                owner, attribute = owner_of(network, name)
                parameter = owner.get_parameter(attribute)
                delattr(owner, attribute)
                owner.register_buffer(attribute, parameter.new_zeros([1] * parameter.ndim), persistent=False)
        except AttributeError as error:
            raise BundleError(
                f"the plan does not fit the network: it drops the branch {branch.name}: {error}. Load it with the "
                "factory it was made with."
            ) from error
