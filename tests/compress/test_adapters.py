"""Forwards with a width written into them, of types that are known."""

from __future__ import annotations

import copy
import importlib

import pytest
import torch
from timm.models.cait import TalkingHeadAttn
from torch import nn

from pruneport.compress.adapters import ADAPTED, adapt


@pytest.mark.parametrize("path", sorted(ADAPTED))
def test_every_type_named_is_there(path: str) -> None:
    module, _, name = path.rpartition(".")
    assert issubclass(getattr(importlib.import_module(module), name), nn.Module)


def test_an_adapted_network_computes_the_same_and_can_be_copied() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(TalkingHeadAttn(16, 2), TalkingHeadAttn(16, 2)).eval()
    inputs = torch.randn(2, 5, 16)
    expected = network(inputs)
    adapt(network, ["0.qkv", "0.proj"])
    adapt(network, ["0.qkv"])
    assert type(network[1]) is TalkingHeadAttn, "nothing of it has shrunk"
    assert isinstance(network[0], TalkingHeadAttn)
    assert type(network[0]).__mro__[2] is TalkingHeadAttn
    assert torch.equal(copy.deepcopy(network)(inputs), expected)
