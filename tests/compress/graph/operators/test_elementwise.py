"""Operators in which tensors meet: channels at the same place go together, and a fixed width holds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from channel_names import A, named, pairs
from torch import Tensor, nn
from torch.nn import functional as F

from pruneport.compress.graph.operators.elementwise import MEETS_FIXED
from small_networks import conv, parameter

B = named("b", 4)
PAIRS = pairs("a", "b", 4)
FIXED = MEETS_FIXED.format("the network")


@pytest.mark.parametrize(
    ("meet", "added"),
    [
        (torch.add, True),
        (torch.sub, True),
        (Tensor.add_, True),
        (torch.mul, False),
        (torch.maximum, False),
        (lambda y, z: torch.where(y > 0, y, z), False),
        (lambda y, z: torch.lerp(y, z, 0.5), False),
    ],
)
def test_two_tensors_go_together_channel_by_channel(meet: Callable[..., Tensor], added: bool, follow: Any) -> None:
    found = follow(lambda n, x: meet(n.a(x), n.b(x)))
    assert found.along(1) == A
    assert found.joined == PAIRS
    assert found.names(*found.trace.added) == (set(A + B) if added else set())


@pytest.mark.parametrize(
    "function", [torch.relu, torch.sigmoid, F.gelu, F.hardswish, lambda y: 2 * y + 1, torch.Tensor.exp_]
)
def test_one_tensor_keeps_its_channels(function: Callable[..., Tensor], follow: Any) -> None:
    found = follow(lambda n, x: function(n.a(x)))
    assert (found.along(1), found.joined, found.unprunable) == (A, [], {})


def test_a_sum_with_its_own_channels_is_no_residual_stream(follow: Any) -> None:
    found = follow(lambda n, x: (y := n.a(x)) + torch.relu(y))
    assert found.along(1) == A
    assert found.trace.added == ()


def test_a_gate_of_one_value_a_channel_goes_with_it(follow: Any) -> None:
    found = follow(lambda n, x: n.a(x) * torch.sigmoid(n.b(x).mean((2, 3), keepdim=True)))
    assert (found.along(1), found.joined) == (A, PAIRS)


def test_a_gate_of_one_value_for_all_joins_nothing(follow: Any) -> None:
    found = follow(lambda n, x: n.a(x) * n.b(x).mean(1, keepdim=True))
    assert (found.along(1), found.joined, found.unprunable) == (A, [], {})


@pytest.mark.parametrize(
    "other",
    [lambda x: torch.ones(4, 1, 1), lambda x: x.mean(1, keepdim=True).expand(-1, 4, -1, -1) + torch.zeros(4, 1, 1)],
)
def test_values_of_a_fixed_width_hold_the_channels(other: Callable[[Tensor], Tensor], follow: Any) -> None:
    found = follow(lambda n, x: n.a(x) + other(x))
    assert found.unprunable == dict.fromkeys(A, FIXED)


@pytest.mark.parametrize(
    "other", [lambda x: torch.ones(8, 8), lambda x: x.mean(1, keepdim=True), lambda x: x[:, :1].expand(-1, 4, -1, -1)]
)
def test_values_of_no_width_hold_nothing(other: Callable[[Tensor], Tensor], follow: Any) -> None:
    found = follow(lambda n, x: n.a(x) + other(x))
    assert (found.along(1), found.unprunable) == (A, {})


def test_a_parameter_that_no_layer_owns_shrinks_along(follow: Any) -> None:
    found = follow(lambda n, x: n.a(x) * n.scale + n.shift, scale=parameter(4, 1, 1), shift=parameter(1, 4, 8, 8))
    assert found.along(1) == A
    assert {"a1", "scale.flat1", *(f"shift.flat{place}" for place in range(64, 128))} in found.joined
    ((line, rows),) = found.trace.biases
    assert found.names(line) == set(A)
    assert found.names(rows[1]) == {f"shift.flat{place}" for place in range(64, 128)}


def test_parts_side_by_side_stay_what_they_are(follow: Any) -> None:
    found = follow(lambda n, x: torch.cat([n.b(x), x, n.a(x)], 1))
    assert found.along(1) == [*B, "", "", "", *A]
    assert (found.joined, found.unprunable) == ([], {})


def test_parts_side_by_side_in_space_share_their_channels(follow: Any) -> None:
    found = follow(lambda n, x: torch.cat([n.a(x), n.b(x)], 3))
    assert (found.along(1), found.joined) == (A, PAIRS)
    held = follow(lambda n, x: torch.cat([n.a(x), torch.zeros(2, 4, 8, 1)], 3))
    assert held.unprunable == dict.fromkeys(A, FIXED)


def test_a_stack_shares_the_channels(follow: Any) -> None:
    found = follow(lambda n, x: torch.stack([n.a(x), n.b(x)], 1))
    assert (found.along(2), found.joined) == (A, PAIRS)


def test_parameters_side_by_side_are_moved(follow: Any) -> None:
    found = follow(
        lambda n, x: n.a(x) + torch.cat([n.left, n.right])[:, None, None], left=parameter(2), right=parameter(2)
    )
    assert found.joined == [{"a0", "left.flat0"}, {"a1", "left.flat1"}, {"a2", "right.flat0"}, {"a3", "right.flat1"}]


def test_what_is_written_over_a_tensor_is_read_from_it(follow: Any) -> None:
    found = follow(lambda n, x: torch.zeros(2, 4, 8, 8).copy_(n.a(x)))
    assert (found.along(1), found.unprunable) == (A, {})


def written(n: Any, x: Tensor) -> Tensor:
    """The left half of the places written, the right half zero."""
    whole = torch.zeros(2, 4, 8, 8)
    whole[:, :, :, :4] = n.a(x)[:, :, :, :4]
    return whole


def test_what_is_written_at_some_places_is_the_whole_tensors(follow: Any) -> None:
    assert follow(written).along(1) == A


def test_channels_that_are_written_among_others_stay(follow: Any) -> None:
    def forward(n: Any, x: Tensor) -> Tensor:
        whole = torch.zeros(2, 6, 8, 8)
        whole[:, 1:5] = n.a(x)
        return whole

    found = follow(forward)
    assert found.unprunable == dict.fromkeys(A, "the network writes its channels into a slice")
    assert found.hidden == set(A)


def test_rows_that_are_put_have_the_tensors_channels(follow: Any) -> None:
    def put(n: Any, x: Tensor, target: Tensor) -> Tensor:
        target[torch.tensor([1, 0])] = n.a(x)
        return target

    assert follow(lambda n, x: put(n, x, torch.zeros(2, 4, 8, 8))).along(1) == A
    into = follow(lambda n, x: put(n, x, n.b(x) * 1))
    assert (into.along(1), into.joined) == (B, PAIRS)


def test_channels_that_are_put_to_places_that_values_say_stay(follow: Any) -> None:
    def forward(n: Any, x: Tensor) -> Tensor:
        whole = torch.zeros(4, 2)
        whole[torch.tensor([1, 0, 3, 2])] = n.a(x).mean((2, 3)).T
        return whole

    found = follow(forward)
    assert found.unprunable == dict.fromkeys(A, "the network writes its channels to places that other values say")


def test_a_weight_that_is_computed_entry_by_entry_is_its_layers(follow: Any) -> None:
    found = follow(lambda n, x: F.conv2d(x, n.c.weight * 2), c=conv(3, 5))
    assert found.along(1) is None, "a weight of other values is no layer's own"
    assert isinstance(found.tracer.network.c, nn.Conv2d)
