"""Matrix products: what is summed over goes together and ends; the other channels stay."""

from __future__ import annotations

from typing import Any

import torch
from channel_names import A, named, pairs
from torch import nn

from small_networks import parameter


def test_a_linear_layer_reads_the_last_dimension(follow: Any) -> None:
    found = follow(lambda n, x: n.fc(n.a(x).permute(0, 2, 3, 1)), fc=nn.Linear(4, 5))
    assert (found.along(3), found.joined) == (named("fc", 5), pairs("a", "fc.in", 4))


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
