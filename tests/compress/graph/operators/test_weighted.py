"""Layers, products and attention: they read channels, which end there, and make new ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from small_networks import conv, parameter

A = [f"a{place}" for place in range(4)]


def named(layer: str, count: int) -> list[str]:
    return [f"{layer}{place}" for place in range(count)]


def pairs(left: str, right: str, count: int) -> list[set[str]]:
    return [{f"{left}{place}", f"{right}{place}"} for place in range(count)]


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


def test_a_decoder_with_the_encoders_weight_reads_its_outputs(follow: Any) -> None:
    found = follow(lambda n, x: F.conv_transpose2d(n.c(n.a(x)), n.c.weight), c=nn.Conv2d(4, 6, 3))
    assert found.along(1) == [f"c.in{place}" for place in range(4)]
    assert found.unprunable == {}
    linear = follow(lambda n, x: n.fc(n.a(x).mean((2, 3))) @ n.fc.weight, fc=nn.Linear(4, 6))
    assert linear.along(1) == [f"fc.in{place}" for place in range(4)]
    assert linear.joined == pairs("a", "fc.in", 4)


def test_a_linear_layer_reads_the_last_dimension(follow: Any) -> None:
    found = follow(lambda n, x: n.fc(n.a(x).permute(0, 2, 3, 1)), fc=nn.Linear(4, 5))
    assert (found.along(3), found.joined) == (named("fc", 5), pairs("a", "fc.in", 4))


def test_a_layer_may_be_applied_along_channels(follow: Any) -> None:
    found = follow(lambda n, x: n.fc(n.a(x)), fc=nn.Linear(8, 5))
    assert found.along(1) == A
    assert found.along(3) == named("fc", 5)
    assert found.names(found.trace.applied_along["fc"]) == set(A)
    assert found.joined == []


def test_places_that_are_channels_are_not_mixed_by_a_convolution(follow: Any) -> None:
    found = follow(lambda n, x: n.c(n.a(x).transpose(1, 2)), c=conv(8, 2))
    assert found.unprunable == dict.fromkeys(A, "c mixes its channels as if they were places")
    assert follow(lambda n, x: n.c(n.a(x).transpose(1, 2)), c=conv(8, 2, 1)).unprunable == {}


def test_a_product_sums_over_channels_that_go_together(follow: Any) -> None:
    found = follow(lambda n, x: n.a(x).flatten(2).transpose(1, 2) @ n.b(x).flatten(2))
    assert found.joined == pairs("a", "b", 4)
    assert (found.along(1), found.along(2)) == (None, None)
    assert found.hidden >= set(A)
    (product,) = found.trace.products
    assert product.macs == 2 * 64 * 64 * 4
    assert found.names(*product.lines) == set(A)


def test_a_product_keeps_the_channels_that_it_does_not_sum_over(follow: Any) -> None:
    found = follow(lambda n, x: n.a(x).flatten(2) @ n.b(x).flatten(2).transpose(1, 2))
    assert (found.along(1), found.along(2), found.joined) == (A, named("b", 4), [])


def test_a_product_with_a_fixed_width_holds_the_channels(follow: Any) -> None:
    found = follow(lambda n, x: n.a(x).mean((2, 3)) @ torch.ones(4, 3))
    assert found.unprunable == dict.fromkeys(A, "the network multiplies its channels with values of a fixed width")


def test_a_parameter_that_no_layer_owns_is_a_matrix(follow: Any) -> None:
    found = follow(lambda n, x: n.a(x).mean((2, 3)) @ n.table, table=parameter(4, 3))
    assert found.joined == [{f"a{row}", *(f"table.flat{3 * row + column}" for column in range(3))} for row in range(4)]
    assert found.names(*found.trace.representation) == set(A)


def heads(y: Tensor) -> Tensor:
    """(B, C, H, W) to two attention heads (B, 2, places, C / 2)."""
    return y.flatten(2).transpose(1, 2).reshape(2, 64, 2, -1).transpose(1, 2)


def test_fused_attention_joins_queries_with_keys_and_keeps_values(follow: Any) -> None:
    layers = {name: conv(3, 8) for name in "qkv"}
    found = follow(
        lambda n, x: F.scaled_dot_product_attention(*(heads(layer(x)) for layer in (n.q, n.k, n.v))), **layers
    )
    widths = [{f"{layer}{place}", f"{layer}{place + 4}"} for place in range(4) for layer in "qkv"]
    assert [unit for unit in found.joined if any(name[0] == "v" for name in unit)] == widths[2::3]
    assert [unit for unit in found.joined if any(name[0] == "q" for name in unit)] == [
        query | key for query, key in zip(widths[::3], widths[1::3], strict=True)
    ]
    assert found.along(3) == named("v", 4)
    assert sum(product.macs for product in found.trace.products) == 2 * (2 * 2 * 64 * 64 * 4)
    assert len(found.trace.scaled_keys) == 1


@pytest.mark.parametrize("whole_heads", [False, True])
def test_torchs_attention_layer(whole_heads: bool, follow: Any) -> None:
    found = follow(
        lambda n, x: n.mha(*[n.c(x).flatten(2).transpose(1, 2)] * 3)[0],
        c=conv(3, 4),
        mha=nn.MultiheadAttention(4, 2, batch_first=True),
        whole_heads=whole_heads,
    )
    assert found.along(2) == named("mha.out_proj", 4)
    rows = [{*(f"mha{place + 4 * part}" for part in range(3)), f"mha.out_proj.in{place}"} for place in range(4)]
    by_width = [rows[0] | rows[2], rows[1] | rows[3]]
    by_head = [rows[0] | rows[1], rows[2] | rows[3]]
    assert [unit for unit in found.joined if "mha0" in unit or "mha.out_proj.in3" in unit] == (
        by_head if whole_heads else by_width
    )
    assert [unit for unit in found.joined if "c0" in unit] == [{"c0", "mha.in0"}]
    assert [(name, attribute) for name, attribute, _ in found.trace.counted] == [("mha", "num_heads")] * whole_heads
    assert sum(product.macs for product in found.trace.products) >= 4 * 2 * 64 * 16


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
