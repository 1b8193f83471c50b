"""Operators that mix entries along a dimension: over places channels stay, over channels they end or cannot go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from channel_names import A
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

from small_networks import conv, parameter

Function = Callable[[Tensor], Tensor]


@pytest.mark.parametrize(
    "pool",
    [
        lambda y: F.max_pool2d(y, 2),
        lambda y: F.avg_pool2d(y, 3, 2),
        lambda y: F.adaptive_avg_pool2d(y, 1),
        lambda y: F.adaptive_max_pool2d(y, 2),
        lambda y: F.interpolate(y, scale_factor=2, mode="bilinear"),
        lambda y: F.pad(y, (1, 1, 1, 1), mode="reflect"),
        lambda y: F.max_pool1d(y.flatten(2), 4),
    ],
)
def test_places_are_pooled_each_channel_for_itself(pool: Function, follow: Any) -> None:
    found = follow(lambda n, x: pool(n.a(x)))
    assert (found.along(1), found.joined, found.unprunable) == (A, [], {})


def test_channels_that_are_pooled_as_places_stay(follow: Any) -> None:
    found = follow(lambda n, x: F.max_pool1d(n.a(x).flatten(2).transpose(1, 2), 2))
    assert set(found.unprunable) == set(A)
    assert found.unprunable["a0"].startswith("the network mixes its channels by ")


def test_a_parameters_places_are_pooled_together(follow: Any) -> None:
    found = follow(lambda n, x: n.a(x) + F.interpolate(n.table, size=(8, 8)), table=parameter(1, 4, 2, 2))
    assert {"a3", *(f"table.flat{place}" for place in range(12, 16))} in found.joined


@pytest.mark.parametrize(
    ("reduce", "dim"),
    [
        (lambda y: y.mean((2, 3)), 1),
        (lambda y: y.amax((2, 3), keepdim=True), 1),
        (lambda y: y.sum(0), 0),
        (lambda y: y.std((2, 3)), 1),
        (lambda y: torch.var_mean(y, (2, 3))[1], 1),
        (lambda y: y.argmax(-1), 1),
        (lambda y: y.cumsum(-1), 1),
        (lambda y: y.softmax(-1), 1),
    ],
)
def test_over_other_dimensions_channels_stay(reduce: Function, dim: int, follow: Any) -> None:
    found = follow(lambda n, x: reduce(n.a(x)))
    assert (found.along(dim), found.joined, found.unprunable) == (A, [], {})
    assert found.trace.normalised_over == ()


@pytest.mark.parametrize(
    ("reduce", "differs"),
    [
        (lambda y: y.sum(1), False),
        (lambda y: y.sum(), False),
        (lambda y: y.norm(dim=1), False),
        (lambda y: y.mean(1), True),
        (lambda y: y.amax(1), True),
        (lambda y: y.std(), True),
        (lambda y: y.logsumexp(1), True),
    ],
)
def test_over_themselves_channels_end(reduce: Function, differs: bool, follow: Any) -> None:
    """Zeros add nothing to a sum or a norm; what counts them, as a mean does, differs when they are removed."""
    found = follow(lambda n, x: reduce(n.a(x)))
    assert found.tracer.labels_of(found.output) == []
    assert found.hidden == set(A)
    assert found.names(*found.trace.output) == set(A)
    assert found.names(*found.trace.normalised_over) == (set(A) if differs else set())


def test_a_softmax_over_channels_keeps_them_and_differs(follow: Any) -> None:
    found = follow(lambda n, x: n.a(x).softmax(1))
    assert found.along(1) == A
    assert found.names(*found.trace.normalised_over) == set(A)


@pytest.mark.parametrize(("order", "dim"), [(lambda y: y.sort(-1)[0], 1), (lambda y: y.flatten(2).topk(3)[0], 1)])
def test_places_are_sorted_each_channel_for_itself(order: Function, dim: int, follow: Any) -> None:
    found = follow(lambda n, x: order(n.a(x)))
    assert (found.along(dim), found.unprunable) == (A, {})


@pytest.mark.parametrize(
    "order", [lambda y: y.topk(2, 1)[0], lambda y: y.sort(1)[1], lambda y: y.flatten(1).median(1)[0]]
)
def test_channels_that_are_sorted_stay(order: Function, follow: Any) -> None:
    found = follow(lambda n, x: order(n.a(x)))
    assert set(found.unprunable) == found.hidden == set(A)
    assert found.unprunable["a0"].startswith("the network sorts its channels by ")


def test_regions_are_pooled_each_channel_for_itself(follow: Any) -> None:
    boxes = torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0], [1.0, 2.0, 2.0, 6.0, 6.0]])
    found = follow(lambda n, x: roi_align(n.a(x), boxes, (2, 2)))
    assert (found.along(1), found.unprunable) == (A, {})


def test_regions_that_the_network_says_depend_on_its_channels(follow: Any) -> None:
    def forward(n: Any, x: Tensor) -> Tensor:
        boxes = torch.cat([torch.zeros(2, 1), n.b(x).mean((2, 3))], 1)
        return roi_align(n.a(x), boxes, (2, 2))  # type: ignore[no-any-return]

    found = follow(forward)
    assert found.along(1) == A
    assert found.hidden == {f"b{place}" for place in range(4)}


def test_halves_that_gate_each_other_go_together(follow: Any) -> None:
    found = follow(lambda n, x: F.glu(n.a(x), 1))
    assert (found.along(1), found.joined) == (["a0", "a1"], [{"a0", "a2"}, {"a1", "a3"}])
    assert follow(lambda n, x: F.glu(n.a(x), 3)).along(1) == A


def test_windows_that_are_summed_up_again_keep_their_channels(follow: Any) -> None:
    found = follow(lambda n, x: F.fold(F.unfold(n.a(x), 2, stride=2), (8, 8), 2, stride=2))
    assert (found.along(1), found.joined, found.unprunable) == (A, [], {})
    mixed = follow(
        lambda n, x: F.fold(n.c(x).flatten(2), (8, 8), 2, padding=4, stride=2), c=conv(3, 8), shape=(2, 3, 8, 8)
    )
    assert mixed.along(1) == ["c0", "c4"]
    assert mixed.joined == [{"c0", "c1", "c2", "c3"}, {"c4", "c5", "c6", "c7"}]


def test_a_weight_that_is_normalised_over_its_inputs_is_noted(follow: Any) -> None:
    class Standardised(torch.nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return F.conv2d(x, weight, self.bias, padding=1)

    class OfPlaces(torch.nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight - self.weight.mean((2, 3), keepdim=True), self.bias, padding=1)

    found = follow(lambda n, x: n.plain(n.over(x)), over=Standardised(3, 5, 3), plain=OfPlaces(5, 4, 3))
    assert found.trace.standardised == {"over"}
    assert found.along(1) == [f"plain{place}" for place in range(4)]
