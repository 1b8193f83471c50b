"""Forwards with a width written into them, of types that are known."""

from __future__ import annotations

import copy
import importlib

import pytest
import torch
from timm.models.cait import TalkingHeadAttn
from timm.models.pvt_v2 import Attention as ReducedAttention
from torch import Tensor, nn

from pruneport.compress.options import PruneOptions
from pruneport.compress.prune import prune
from pruneport.compress.resize.hardcoded_widths import ADAPTED, adapt
from pruneport.models.record import Source


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


class Reduced(nn.Module):
    """Attention whose keys are of fewer places, by a convolution with as many channels as the one head has."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 16, 2, stride=2), nn.Linear(16, 3)
        self.attention = ReducedAttention(16, num_heads=1, sr_ratio=2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x).flatten(2).transpose(1, 2)
        out: Tensor = self.fc((y + self.attention(y, (4, 4))).mean(1))
        return out


def test_a_width_asked_for_where_it_is_not_last_is_replaced() -> None:
    torch.manual_seed(0)
    source = Source(spec="tests:reduced", model_args={}, seed=0, input_shape=(3, 8, 8))
    pruned = prune(Reduced().eval(), source, PruneOptions(ratio=0.5, round_to=1))
    attention = pruned.network.attention
    assert (attention.q.out_features, attention.kv.out_features, attention.sr.out_channels) == (8, 16, 8)  # type: ignore[union-attr]
    assert attention.head_dim == 8  # type: ignore[union-attr]
    assert pruned.plan.masked_error is not None
    assert pruned.plan.masked_error < 1e-6
