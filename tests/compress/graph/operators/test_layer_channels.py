"""What layers of every kind do: one applied along other channels, or with its weight the other way round."""

from __future__ import annotations

from typing import Any

from channel_names import A, named, pairs
from torch import nn
from torch.nn import functional as F


def test_a_decoder_with_the_encoders_weight_reads_its_outputs(follow: Any) -> None:
    found = follow(lambda n, x: F.conv_transpose2d(n.c(n.a(x)), n.c.weight), c=nn.Conv2d(4, 6, 3))
    assert found.along(1) == [f"c.in{place}" for place in range(4)]
    assert found.unprunable == {}
    linear = follow(lambda n, x: n.fc(n.a(x).mean((2, 3))) @ n.fc.weight, fc=nn.Linear(4, 6))
    assert linear.along(1) == [f"fc.in{place}" for place in range(4)]
    assert linear.joined == pairs("a", "fc.in", 4)


def test_a_layer_may_be_applied_along_channels(follow: Any) -> None:
    found = follow(lambda n, x: n.fc(n.a(x)), fc=nn.Linear(8, 5))
    assert found.along(1) == A
    assert found.along(3) == named("fc", 5)
    assert found.names(found.trace.applied_along["fc"]) == set(A)
    assert found.joined == []
