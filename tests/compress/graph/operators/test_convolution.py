"""Convolutions: they read channels, which end there, and make new ones; depthwise ones pass them on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from channel_names import A, named, pairs
from torch import nn
from torch.nn import functional as F

from small_networks import conv


def test_a_convolution_reads_channels_and_makes_new_ones(follow: Any) -> None:
    found = follow(lambda n, x: n.c(n.a(x)), c=conv(4, 6))
    assert found.along(1) == named("c", 6)
    assert found.joined == pairs("a", "c.in", 4)
    assert found.hidden == set(), "what is before a layer is no output"


def test_a_convolution_of_the_image_reads_nothing(follow: Any) -> None:
    assert ("a", "in") not in follow(lambda n, x: n.a(x)).trace.channel_ids.offsets


@pytest.mark.parametrize("layer", [nn.ConvTranspose2d(4, 6, 2), nn.Conv2d(4, 6, (3, 1), stride=2, dilation=2)])
def test_convolutions_of_every_kind_are_read_alike(layer: nn.Module, follow: Any) -> None:
    found = follow(lambda n, x: n.c(n.a(x)), c=layer)
    assert (found.along(1), found.joined) == (named("c", 6), pairs("a", "c.in", 4))


def test_a_depthwise_convolution_goes_with_what_it_filters(follow: Any) -> None:
    found = follow(lambda n, x: n.c(n.a(x)), c=conv(4, 8, groups=4))
    assert found.along(1) == named("c", 8)
    assert found.joined == [{f"a{place}", f"c{2 * place}", f"c{2 * place + 1}"} for place in range(4)]
    alone = follow(lambda n, x: n.c(x), c=conv(3, 3, groups=3))
    assert alone.unprunable == dict.fromkeys(named("c", 3), "c reads channels whose width does not follow any layer")


def test_narrow_channel_groups_go_as_a_whole_and_wide_ones_do_not(follow: Any) -> None:
    found = follow(lambda n, x: n.g(n.c(x)), c=conv(3, 6), g=conv(6, 3, groups=3))
    assert found.joined == [
        {f"c{2 * run}", f"c{2 * run + 1}", f"g.in{2 * run}", f"g.in{2 * run + 1}", f"g{run}"} for run in range(3)
    ]
    wide = follow(lambda n, x: n.g(n.c(x)), c=conv(3, 64), g=conv(64, 64, groups=4))
    assert wide.joined == pairs("c", "g.in", 64)


def test_a_kernel_of_no_layer_filters_each_channel_for_itself(follow: Any) -> None:
    found = follow(lambda n, x: F.conv2d(n.a(x), torch.ones(4, 1, 3, 3), groups=4))
    assert (found.along(1), found.joined) == (A, [])
    (product,) = found.trace.products
    assert product.macs == 2 * 4 * 6 * 6 * 9
    assert found.names(*product.lines) == set(A)


def test_a_computed_weight_holds_the_channels(follow: Any) -> None:
    found = follow(lambda n, x: F.conv2d(n.a(x), n.b(x).mean((2, 3)).reshape(2, 4, 1, 1)))
    assert {found.unprunable[name] for name in A} == {"the network multiplies its channels by a computed weight"}
    assert {found.unprunable[f"b{place}"] for place in range(4)} == {
        "the network takes its channels as the weights of a convolution"
    }


def test_places_that_are_channels_are_not_mixed_by_a_convolution(follow: Any) -> None:
    found = follow(lambda n, x: n.c(n.a(x).transpose(1, 2)), c=conv(8, 2))
    assert found.unprunable == dict.fromkeys(A, "c mixes its channels as if they were places")
    assert follow(lambda n, x: n.c(n.a(x).transpose(1, 2)), c=conv(8, 2, 1)).unprunable == {}
