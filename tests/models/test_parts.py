"""Parts of a network by their names."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pruneport.models.parts import owner_of, part, set_part


def test_parts_are_found_and_replaced_by_name() -> None:
    network = nn.Sequential(nn.Sequential(nn.Linear(2, 3)), nn.ReLU())
    assert part(network, "0.0.weight") is network[0][0].weight
    assert part(network, "1") is network[1]
    assert owner_of(network, "0.0.bias") == (network[0][0], "bias")
    other = nn.Parameter(torch.zeros(3, 2))
    set_part(network, "0.0.weight", other)
    assert network[0][0].weight is other
    with pytest.raises(AttributeError):
        part(network, "0.5.weight")
