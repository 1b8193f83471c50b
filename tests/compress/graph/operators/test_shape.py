"""Operators that move entries: the channels move along, and only what must stay in step is joined."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from channel_names import A
from torch import Tensor, nn
from torch.nn import functional as F

from small_networks import conv, parameter


def each(count: int, names: list[str] = A) -> list[str]:
    """Every name ``count`` times in a row."""
    return [name for name in names for _ in range(count)]


MOVES: dict[str, tuple[Callable[[Tensor], Tensor], int, list[str]]] = {
    "permute": (lambda y: y.permute(0, 2, 3, 1), 3, A),
    "transpose": (lambda y: y.transpose(1, 3), 3, A),
    "flatten": (lambda y: y.flatten(1), 1, each(64)),
    "flatten of channels last": (lambda y: y.permute(0, 2, 3, 1).flatten(1), 1, A * 64),
    "unsqueeze": (lambda y: y[:, None], 2, A),
    "flip": (lambda y: y.flip(1), 1, A[::-1]),
    "roll": (lambda y: y.roll(1, 1), 1, [A[3], *A[:3]]),
    "slice": (lambda y: y[:, 1:3], 1, A[1:3]),
    "every second": (lambda y: y[:, ::2], 1, A[::2]),
    "narrow": (lambda y: y.narrow(1, 2, 2), 1, A[2:]),
    "repeat": (lambda y: y.repeat(1, 2, 1, 1), 1, A * 2),
    "repeat_interleave": (lambda y: y.repeat_interleave(2, 1), 1, each(2)),
    "clone": (lambda y: y.clone(), 1, A),
    "contiguous": (lambda y: y.permute(0, 2, 3, 1).contiguous(), 3, A),
    "another type": (lambda y: y.half().float(), 1, A),
    "expand": (lambda y: y.mean((2, 3))[:, :, None].expand(-1, -1, 5), 1, A),
    "windows": (lambda y: y.unfold(2, 3, 1), 1, A),
    "pad of places": (lambda y: F.pad(y, (1, 1, 2, 0)), 1, A),
    "pad of channels": (lambda y: F.pad(y, (0, 0, 0, 0, 1, 2)), 1, ["", *A, "", ""]),
    "pixel_unshuffle": (lambda y: F.pixel_unshuffle(y, 2), 1, each(4)),
    "im2col": (lambda y: F.unfold(y, 3), 1, each(9)),
    "split in parts that are named": (lambda y: y.split([1, 3], 1)[1], 1, A[1:]),
    "shared memory": (lambda y: y.new_empty(0).set_(y), 1, A),
    "a copy": (copy.copy, 1, A),
}  # fmt: skip


@pytest.mark.parametrize("name", MOVES)
def test_channels_move_along_and_nothing_is_joined(name: str, follow: Any) -> None:
    move, dim, expected = MOVES[name]
    found = follow(lambda n, x: move(n.a(x)))
    assert found.along(dim) == expected
    assert found.joined == []
    assert found.unprunable == {}


def test_one_channel_alone_is_still_known(follow: Any) -> None:
    found = follow(lambda n, x: n.a(x)[:, 2])
    (labels,) = found.tracer.labels_of(found.output)
    assert found.names(labels.ids) == {"a2"}
    assert found.along(1) is None, "the rows of places are not channels"


def test_equal_parts_of_a_split_stay_equal(follow: Any) -> None:
    found = follow(lambda n, x: n.a(x).chunk(2, dim=1)[1])
    assert found.along(1) == ["a2", "a3"]
    assert found.joined == [{"a0", "a2"}, {"a1", "a3"}]
    assert follow(lambda n, x: n.a(x).split([2, 2], 1)[1]).joined == []


def test_a_channel_shuffle_must_leave_a_full_grid(follow: Any) -> None:
    found = follow(lambda n, x: n.a(x).view(2, 2, 2, 8, 8).transpose(1, 2).reshape(2, 4, 8, 8))
    assert found.along(1) == ["a0", "a2", "a1", "a3"]
    assert found.joined == [{"a0", "a2"}, {"a1", "a3"}]


def test_torchs_own_channel_shuffle_must_leave_one_too(follow: Any) -> None:
    found = follow(lambda n, x: F.channel_shuffle(n.a(x), 2))
    assert found.along(1) == ["a0", "a2", "a1", "a3"]
    assert found.joined == [{"a0", "a2"}, {"a1", "a3"}]


def test_pixel_shuffle_joins_the_channels_of_one(follow: Any) -> None:
    found = follow(lambda n, x: F.pixel_shuffle(n.c(x), 2), c=conv(3, 8))
    assert found.along(1) == ["c0", "c4"]
    assert found.joined == [{"c0", "c1", "c2", "c3"}, {"c4", "c5", "c6", "c7"}]


def test_places_that_are_channels_are_not_shuffled(follow: Any) -> None:
    found = follow(lambda n, x: F.pixel_shuffle(n.a(x).permute(0, 2, 1, 3), 2))
    assert set(found.unprunable) == set(A)
    assert found.unprunable["a0"] == "the network mixes its channels as if they were places"


@pytest.mark.parametrize(
    ("shape", "joined"),
    [
        ((3, 4), [{f"q{head * 4 + place}" for head in range(3)} for place in range(4)]),  # the longest
        ((4, 3), [{f"q{head * 3 + place}" for place in range(3)} for head in range(4)]),
    ],
)
def test_of_heads_and_their_width_the_longer_stays(shape: tuple[int, int], joined: Any, follow: Any) -> None:
    found = follow(lambda n, x: n.q(x.mean((2, 3))).reshape(2, *shape), q=nn.Linear(3, 12))
    assert found.along(1 + shape.index(4)) == [min(unit, key=lambda name: int(name[1:])) for unit in joined]
    assert found.joined == joined
    assert not found.trace.attention_heads


def test_where_whole_heads_go_they_are_the_dimension_that_stays(follow: Any) -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.num_heads, self.q = 3, nn.Linear(3, 12)

        def forward(self, x: Tensor) -> Tensor:
            return self.q(x.mean((2, 3))).reshape(2, 3, 4)  # type: ignore[no-any-return]

    found = follow(lambda n, x: n.heads(x), heads=Heads(), whole_heads=True)
    assert found.along(1) == ["heads.q0", "heads.q4", "heads.q8"]
    assert found.joined == [{f"heads.q{head * 4 + place}" for place in range(4)} for head in range(3)]
    assert found.names(*found.trace.attention_heads) == {"heads.q0", "heads.q4", "heads.q8"}


def test_channels_that_are_picked_and_those_that_are_not(follow: Any) -> None:
    found = follow(lambda n, x: n.a(x)[:, torch.tensor([2, 0])])
    assert found.along(1) == ["a2", "a0"]
    assert found.hidden == {"a1", "a3"}, "the values do not hold them, yet positions count them"


def test_rows_of_a_table_that_no_layer_owns(follow: Any) -> None:
    found = follow(lambda n, x: F.embedding(torch.tensor([1, 1, 0]), n.table), table=parameter(2, 3))
    (labels,) = found.tracer.labels_of(found.output)
    assert labels.unwrapped
    assert [found.name(entry) for entry in labels.ids[:, 0].tolist()] == [
        "table.flat3",
        "table.flat3",
        "table.flat0",
    ]


def test_a_layers_weight_seen_another_way_stays_its_own(follow: Any) -> None:
    found = follow(lambda n, x: F.linear(x.mean((2, 3)), n.fc.weight.T.contiguous().T), fc=nn.Linear(3, 5))
    assert found.along(1) == [f"fc{place}" for place in range(5)]
