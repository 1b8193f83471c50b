"""Integers that remember what they were computed from."""

from __future__ import annotations

import copy
import json
import math
import operator
from typing import Any

import pytest
import torch
from torch import nn

from pruneport.compress.sizes.traced_sizes import (
    AttributeSize,
    TracedSize,
    attributes_traced,
    evaluate,
    expression_of,
    leaves_of,
)


class Ear:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.equal: list[tuple[int, int]] = []

    def used_as_number(self, size: TracedSize) -> None:
        self.numbers.append(int(size))

    def compared_equal(self, size: TracedSize, other: int) -> None:
        self.equal.append((int(size), int(other)))


WIDTH, HEADS = AttributeSize("block", "width"), AttributeSize("block", "heads")


@pytest.fixture
def ear() -> Ear:
    return Ear()


@pytest.fixture
def width(ear: Ear) -> TracedSize:
    return TracedSize(48, WIDTH, ear)


@pytest.fixture
def heads(ear: Ear) -> TracedSize:
    return TracedSize(4, HEADS, ear)


def test_what_is_computed_can_be_computed_again(width: Any, heads: Any, ear: Ear) -> None:
    for size in (
        width // heads,
        3 * width,
        width - 1,
        96 - width,
        -width,
        width % 5,
        100 // heads,
        heads**2,
        sum([width, heads]),
        divmod(width, heads)[0],
        math.prod([width, heads]),
    ):
        assert type(size) is TracedSize
        assert evaluate(expression_of(size), {WIDTH: 48, HEADS: 4}.__getitem__) == size
    assert evaluate(expression_of(width // heads + 1), {WIDTH: 36, HEADS: 2}.__getitem__) == 19
    assert evaluate(expression_of(width // heads), {WIDTH: 36, HEADS: 0}.__getitem__) is None, "nothing is divided by 0"
    assert list(leaves_of(expression_of(2 * width // heads))) == [WIDTH, HEADS]
    assert not ear.numbers


@pytest.mark.parametrize(
    "use",
    [
        lambda size: size**-0.5,
        lambda size: size**-1,
        lambda size: 1 / size,
        lambda size: size / 2,
        lambda size: size * 0.5,
        lambda size: math.sqrt(size),
        float,
    ],
)
def test_real_numbers_are_told_and_plain(use: Any, width: Any, ear: Ear) -> None:
    assert use(width) == use(48)
    assert type(use(width)) is float
    assert set(ear.numbers) == {48}


def test_it_acts_as_the_integer(width: Any, ear: Ear) -> None:
    assert {48: "a"}[width] == "a"
    assert list(range(60))[width] == 48
    assert json.dumps([width]) == "[48]"
    assert f"{width} {width:03d}" == "48 048"
    assert torch.zeros(width).shape == (48,)
    assert (torch.zeros(2, 48).view(2, width) * width).shape == (2, 48)
    for plain in (int(width), copy.copy(width), copy.deepcopy(width), operator.index(copy.copy(width))):
        assert type(plain) is int
    ear.equal.clear()  # a look-up compares
    assert width == 48
    assert width != 47
    assert width != "48"
    assert ear.equal == [(48, 48)]


class Block(nn.Module):
    """Keeps widths, and remembers one in its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.parts, self.flag, self.one, self._own = 8, (5, 3), True, 1, 8
        self.inner = nn.Conv2d(2, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last, self.both = self.width + 1, [self.width, self.parts[0]]
        return x


def test_attributes_are_traced_and_as_before(ear: Ear) -> None:
    block = Block()
    before = dict(vars(block))
    with attributes_traced(nn.Sequential(block), (nn.Conv2d,), ear):
        assert expression_of(block.width) == AttributeSize("0", "width")
        assert [expression_of(part) for part in block.parts] == [AttributeSize("0", "parts", place) for place in (0, 1)]
        assert type(block.parts) is tuple
        for untouched in (block.flag, block.one, block._own, block.inner.out_channels):
            assert type(untouched) in (bool, int)
        block(torch.zeros(1))
        block.one = 7
    assert {name: vars(block)[name] for name in before if name != "one"} == {
        name: value for name, value in before.items() if name != "one"
    }
    assert type(block.width) is int
    assert block.one == 7, "what the forward sets stays"
    assert (type(block.last), block.last, block.both) == (int, 9, [8, 5])
    assert all(type(part) is int for part in block.both)
