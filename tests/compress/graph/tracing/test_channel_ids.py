"""Numbers of channels, joined into units: a partition, whatever is joined and in whatever order."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruneport.compress.graph.tracing.channel_ids import ChannelIds

AXES = [(("a", "out"), 5), (("b", "in"), 4), (("c", "flat"), 6)]
COUNT = sum(size for _, size in AXES)
JOINS = st.lists(st.lists(st.tuples(st.integers(0, COUNT), st.integers(0, COUNT)), min_size=1, max_size=4), max_size=8)


def numbered() -> ChannelIds:
    ids = ChannelIds()
    for key, size in AXES:
        ids.register(key, size)
    return ids


def test_positions_are_numbered_once_and_from_one() -> None:
    ids = numbered()
    assert ids.register(("a", "out"), 5).tolist() == [1, 2, 3, 4, 5]
    assert ids.register(("b", "in"), 4).tolist() == [6, 7, 8, 9]
    assert ids.offsets == {("a", "out"): 1, ("b", "in"): 6, ("c", "flat"): 10}
    assert [ids.key_of(channel) for channel in (1, 5, 6, 15)] == [AXES[0][0], AXES[0][0], AXES[1][0], AXES[2][0]]


@given(joins=JOINS)
@settings(deadline=None, derandomize=True)
def test_joining_makes_the_finest_partition_that_holds_all_pairs(joins: list[list[tuple[int, int]]]) -> None:
    ids = numbered()
    units = [{channel} for channel in range(1, COUNT + 1)]
    for pairs in joins:
        left, right = (torch.tensor(side) for side in zip(*pairs, strict=True))
        ids.join(left, right)
        for one, other in pairs:
            if one and other:  # zeros join nothing
                both = [unit for unit in units if one in unit or other in unit]
                units = [unit for unit in units if unit not in both] + [set().union(*both)]
    roots = ids.roots(torch.arange(COUNT + 1)).tolist()
    assert roots[0] == 0
    for unit in units:
        assert {roots[channel] for channel in unit} == {min(unit)}
    assert [root for key, _ in AXES for root in ids.of(key).tolist()] == roots[1:]


@given(joins=JOINS)
@settings(deadline=None, derandomize=True)
def test_the_order_of_joins_does_not_matter(joins: list[list[tuple[int, int]]]) -> None:
    forth, back = numbered(), numbered()
    for ids, order in ((forth, joins), (back, joins[::-1])):
        for pairs in order:
            ids.join(*(torch.tensor(side) for side in zip(*pairs, strict=True)))
    channels = torch.arange(COUNT + 1)
    assert torch.equal(forth.roots(channels), back.roots(channels))


def test_numbers_are_joined_place_by_place_of_the_broadcast_shape() -> None:
    ids = numbered()
    ids.join(torch.tensor([[1], [2]]), torch.tensor([[6, 7], [8, 0]]))
    assert ids.roots(torch.tensor([1, 6, 7, 2, 8, 9])).tolist() == [1, 1, 1, 2, 2, 9]


def test_an_axis_that_comes_later_is_of_units_of_its_own() -> None:
    ids = numbered()
    ids.join(torch.tensor([1]), torch.tensor([6]))
    later = ids.register(("d", "out"), 2)
    assert ids.roots(later).tolist() == later.tolist() == [16, 17]
