"""Norms and slopes: a number per channel goes with the channel; averages over channels are noted."""

from __future__ import annotations

from typing import Any

import pytest
from channel_names import A, named, pairs
from torch import nn
from torch.nn import functional as F

from small_networks import parameter


@pytest.mark.parametrize(
    ("layer", "averaging"),
    [(nn.BatchNorm2d(4), False), (nn.InstanceNorm2d(4, affine=True), False), (nn.GroupNorm(2, 4), True)],
)
def test_a_norms_channels_go_with_what_it_normalises(layer: nn.Module, averaging: bool, follow: Any) -> None:
    found = follow(lambda n, x: n.norm(n.a(x)), norm=layer)
    assert (found.along(1), found.joined) == (named("norm", 4), pairs("a", "norm", 4))
    assert found.names(*found.trace.normalised_over) == (set(A) if averaging else set())


def test_a_layer_norm_averages_over_channels_and_not_over_places_too(follow: Any) -> None:
    found = follow(lambda n, x: n.norm(n.a(x).permute(0, 2, 3, 1)), norm=nn.LayerNorm(4))
    assert (found.along(3), found.joined) == (named("norm", 4), pairs("a", "norm", 4))
    assert found.names(*found.trace.normalised_over) == set(A)
    both = follow(lambda n, x: F.layer_norm(n.a(x), (4, 8, 8)))
    assert both.unprunable == dict.fromkeys(A, "the network normalises over channels and places at once")


def test_a_norm_with_parameters_that_no_layer_owns(follow: Any) -> None:
    found = follow(
        lambda n, x: F.layer_norm(n.a(x).permute(0, 2, 3, 1), (4,), n.gain, n.shift),
        gain=parameter(4),
        shift=parameter(4),
    )
    assert found.along(3) == A
    assert found.joined == [{f"a{place}", f"gain.flat{place}", f"shift.flat{place}"} for place in range(4)]


@pytest.mark.parametrize(("slopes", "joined"), [(4, pairs("a", "act", 4)), (1, [])])
def test_slopes(slopes: int, joined: list[set[str]], follow: Any) -> None:
    found = follow(lambda n, x: n.act(n.a(x)), act=nn.PReLU(slopes))
    assert (found.along(1), found.joined) == (A, joined)
