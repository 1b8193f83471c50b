"""Which layers make the outputs."""

from __future__ import annotations

import torch
from torch import nn

from pruneport.compress.graph.groups import find_groups
from pruneport.errors import PruningError
from pruneport.models.parts import part

__all__ = ["find_output_layers"]


def find_output_layers(network: nn.Module, shape: tuple[int, int, int]) -> dict[str, int]:
    """Outputs of every layer whose outputs leave the network as they are, by its name.

    Args:
        network: In eval mode; it is run once.
        shape: C, H, W of its input.

    Raises:
        PruningError: The outputs are no layer's, so there is none to replace.
    """
    groups = find_groups(network, torch.zeros(1, *shape))
    outputs = {
        member.module: member.size
        for group in groups
        if group.role == "output" and not group.consumers
        for member in group.members
        if member.axis == "out"
    }
    layers = {name: layer for name in outputs if isinstance(layer := part(network, name), nn.Linear | nn.Conv2d)}
    if not outputs or len(layers) != len(outputs):
        raise PruningError(
            "the network's outputs are not made by a linear layer or a convolution, so there is no head to replace; "
            "give a factory that builds it for your classes, and train that layer with `keep_head`."
        )
    return outputs
