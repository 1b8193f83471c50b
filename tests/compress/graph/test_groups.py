"""Groups: on hand-made networks the coupling is known; on random ones it is a partition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pruneport.compress.graph.groups import Group, find_groups
from small_networks import Net, conv, pooled

SHAPE = (3, 8, 8)


def by_name(network: nn.Module, shape: tuple[int, int, int] = SHAPE) -> dict[str, Group]:
    groups = find_groups(network.eval(), torch.randn(1, *shape))
    assert len({group.name for group in groups}) == len(groups)
    return {group.name: group for group in groups}


def positions(group: Group) -> dict[tuple[str, str], list[list[int]]]:
    return {(member.module, member.axis): member.positions.tolist() for member in group.members}


def singles(start: int, stop: int) -> list[list[int]]:
    return [[position] for position in range(start, stop)]


def test_a_plain_chain() -> None:
    network = Net(
        lambda n, x: n.fc(pooled(n.b(torch.relu(n.norm(n.a(x)))))),
        a=conv(3, 4),
        norm=nn.BatchNorm2d(4),
        b=conv(4, 6),
        fc=nn.Linear(6, 5),
    )
    groups = by_name(network)
    assert list(groups) == ["a", "b", "fc"]
    assert [group.role for group in groups.values()] == ["filters", "representation", "output"]
    assert [group.width for group in groups.values()] == [4, 6, 5]
    assert positions(groups["a"]) == {
        ("a", "out"): singles(0, 4),
        ("norm", "channels"): singles(0, 4),
        ("b", "in"): singles(0, 4),
    }
    assert positions(groups["b"]) == {("b", "out"): singles(0, 6), ("fc", "in"): singles(0, 6)}
    assert positions(groups["fc"]) == {("fc", "out"): singles(0, 5)}
    assert groups["a"].producers == ("a",)
    assert groups["a"].consumers == ("b",)
    assert all(group.blocks == 1 and not group.reason for group in groups.values())


def test_a_residual_with_identity() -> None:
    def forward(n: Any, x: Tensor) -> Tensor:
        y = n.stem(x)
        y = y + n.second(torch.relu(n.first(y)))
        out: Tensor = n.fc(pooled(n.last(y)))
        return out

    network = Net(forward, stem=conv(3, 8), first=conv(8, 6), second=conv(6, 8), last=conv(8, 4), fc=nn.Linear(4, 2))
    groups = by_name(network)
    assert {name: group.role for name, group in groups.items()} == {
        "stem": "stream",
        "first": "filters",
        "last": "representation",
        "fc": "output",
    }
    assert positions(groups["stem"]) == {
        ("stem", "out"): singles(0, 8),
        ("second", "out"): singles(0, 8),
        ("first", "in"): singles(0, 8),
        ("last", "in"): singles(0, 8),
    }
    assert set(groups["stem"].producers) == {"stem", "second"}


def test_a_residual_with_projection() -> None:
    def forward(n: Any, x: Tensor) -> Tensor:
        y = torch.relu(n.stem(x))
        y = n.second(torch.relu(n.first(y))) + n.shortcut(y)
        out: Tensor = n.fc(pooled(n.last(y)))
        return out

    network = Net(
        forward,
        stem=conv(3, 8),
        first=conv(8, 6),
        second=conv(6, 12),
        shortcut=conv(8, 12, 1),
        last=conv(12, 4),
        fc=nn.Linear(4, 2),
    )
    groups = by_name(network)
    stream = next(group for group in groups.values() if "shortcut" in group.producers)
    assert set(stream.producers) == {"second", "shortcut"}
    assert set(stream.consumers) == {"last"}
    assert stream.role == "stream"
    assert groups["stem"].role == "stream", "it feeds a projection shortcut: a residual stream"
    assert set(groups["stem"].consumers) == {"first", "shortcut"}
    assert groups["first"].role == "filters"


def test_a_representation_inside_a_stream_is_a_representation() -> None:
    def forward(n: Any, x: Tensor) -> Tensor:
        y = n.stem(x)
        out: Tensor = n.fc(pooled(torch.relu(y + n.second(n.first(y)))))
        return out

    groups = by_name(Net(forward, stem=conv(3, 8), first=conv(8, 6), second=conv(6, 8), fc=nn.Linear(8, 2)))
    assert groups["stem"].role == "representation"
    assert groups["first"].role == "filters"


def test_a_concatenation_of_uneven_branches() -> None:
    network = Net(
        lambda n, x: n.fc(pooled(n.last(torch.relu(n.norm(torch.cat([n.a(x), n.b(x), n.c(x)], 1)))))),
        a=conv(3, 2),
        b=conv(3, 5),
        c=conv(3, 3),
        norm=nn.BatchNorm2d(10),
        last=conv(10, 4),
        fc=nn.Linear(4, 2),
    )
    groups = by_name(network)
    for name, start, stop in (("a", 0, 2), ("b", 2, 7), ("c", 7, 10)):
        assert groups[name].role == "filters"
        assert positions(groups[name]) == {
            (name, "out"): singles(0, stop - start),
            ("norm", "channels"): singles(start, stop),
            ("last", "in"): singles(start, stop),
        }


def test_a_tensor_concatenated_with_itself_occupies_two_positions_a_unit() -> None:
    def forward(n: Any, x: Tensor) -> Tensor:
        y = n.a(x)
        out: Tensor = n.fc(pooled(n.last(torch.cat([y, torch.relu(y)], 1))))
        return out

    groups = by_name(Net(forward, a=conv(3, 4), last=conv(8, 4), fc=nn.Linear(4, 2)))
    assert positions(groups["a"]) == {
        ("a", "out"): singles(0, 4),
        ("last", "in"): [[unit, unit + 4] for unit in range(4)],
    }


@pytest.mark.parametrize("sizes", [[2, 5, 3], [5, 5], [1, 9]])
def test_a_split_in_uneven_parts(sizes: list[int]) -> None:
    def forward(n: Any, x: Tensor) -> Tensor:
        parts = torch.split(n.a(x), sizes, dim=1)
        out: Tensor = n.fc(pooled(sum(getattr(n, f"b{index}")(part) for index, part in enumerate(parts))))
        return out

    branches = {f"b{index}": conv(size, 4) for index, size in enumerate(sizes)}
    groups = find_groups(Net(forward, a=conv(3, 10), fc=nn.Linear(4, 2), **branches).eval(), torch.randn(1, *SHAPE))
    found = {consumer: group for group in groups for consumer in group.consumers}
    start = 0
    for index, size in enumerate(sizes):
        assert positions(found[f"b{index}"]) == {
            ("a", "out"): singles(start, start + size),
            (f"b{index}", "in"): singles(0, size),
        }
        start += size


def test_chunks_in_uneven_parts() -> None:
    def forward(n: Any, x: Tensor) -> Tensor:
        first, second, third = n.a(x).chunk(3, dim=1)
        out: Tensor = n.fc(pooled(n.b(first * second) + n.c(third)))
        return out

    network = Net(forward, a=conv(3, 8), b=conv(3, 4), c=conv(2, 4), fc=nn.Linear(4, 2))
    groups = find_groups(network.eval(), torch.randn(1, *SHAPE))
    found = {consumer: group for group in groups for consumer in group.consumers}
    assert positions(found["b"]) == {("a", "out"): [[0, 3], [1, 4], [2, 5]], ("b", "in"): singles(0, 3)}
    assert positions(found["c"]) == {("a", "out"): [[6], [7]], ("c", "in"): singles(0, 2)}


def test_channels_that_meet_the_image_or_a_constant_are_obstacles() -> None:
    def forward(n: Any, x: Tensor) -> Tensor:
        y = n.b(n.a(x) + x) * torch.arange(4.0).reshape(4, 1, 1)
        out: Tensor = n.fc(pooled(n.c(torch.cat([y, x], 1))))
        return out

    groups = by_name(Net(forward, a=conv(3, 3), b=conv(3, 4), c=conv(7, 5), fc=nn.Linear(5, 2)))
    for name in ("a", "b"):
        assert "combines its channels with values whose width does not follow any layer" in groups[name].reason
    assert positions(groups["b"])["c", "in"] == singles(0, 4)


def test_a_split_whose_parts_are_read_twice_or_never() -> None:
    def forward(n: Any, x: Tensor) -> Tensor:
        _, first, second = torch.split(n.a(x), [2, 3, 5], dim=1)
        joined = torch.cat([second, first, n.inner(second)], 1)
        out: Tensor = n.fc(pooled(n.b(joined)))
        return out

    network = Net(forward, a=conv(3, 10), inner=conv(5, 4), b=conv(12, 4), fc=nn.Linear(4, 2))
    groups = find_groups(network.eval(), torch.randn(1, *SHAPE))
    found = {member.positions[0, 0]: group for group in groups for member in group.members if member.module == "a"}
    assert positions(found[0]) == {("a", "out"): singles(0, 2)}
    assert positions(found[2]) == {("a", "out"): singles(2, 5), ("b", "in"): singles(5, 8)}
    assert positions(found[5]) == {
        ("a", "out"): singles(5, 10),
        ("inner", "in"): singles(0, 5),
        ("b", "in"): singles(0, 5),
    }


def test_a_grouped_convolution_needs_equal_counts() -> None:
    network = Net(
        lambda n, x: n.fc(pooled(n.last(torch.relu(n.grouped(torch.relu(n.a(x))))))),
        a=conv(3, 64),
        grouped=conv(64, 96, groups=4),
        last=conv(96, 4),
        fc=nn.Linear(4, 2),
    )
    groups = by_name(network)
    assert positions(groups["a"]) == {("a", "out"): singles(0, 64), ("grouped", "in"): singles(0, 64)}
    assert positions(groups["grouped"]) == {("grouped", "out"): singles(0, 96), ("last", "in"): singles(0, 96)}
    assert groups["a"].blocks == groups["grouped"].blocks == 4
    assert not groups["a"].reason
    assert not groups["grouped"].reason
    assert groups["last"].blocks == 1


def test_narrow_channel_groups_are_removed_as_a_whole() -> None:
    network = Net(
        lambda n, x: n.fc(pooled(n.last(torch.relu(n.grouped(torch.relu(n.a(x))))))),
        a=conv(3, 8),
        grouped=conv(8, 12, groups=4),
        last=conv(12, 4),
        fc=nn.Linear(4, 2),
    )
    group = by_name(network)["a"]
    twos = [[2 * unit, 2 * unit + 1] for unit in range(4)]
    threes = [[3 * unit, 3 * unit + 1, 3 * unit + 2] for unit in range(4)]
    assert positions(group) == {
        ("a", "out"): twos,
        ("grouped", "in"): twos,
        ("grouped", "out"): threes,
        ("last", "in"): threes,
    }
    assert (group.width, group.blocks, group.span) == (4, 1, 1)


def test_a_grouped_convolution_fed_by_two_branches_stays_dense() -> None:
    network = Net(
        lambda n, x: n.fc(pooled(n.grouped(torch.cat([n.a(x), n.b(x)], 1)))),
        a=conv(3, 2),
        b=conv(3, 6),
        grouped=conv(8, 4, groups=2),
        fc=nn.Linear(4, 2),
    )
    groups = by_name(network)
    for name in ("a", "b"):
        assert groups[name].reason == "grouped has 2 channel groups that this group's channels do not fill evenly"


@pytest.mark.parametrize("container", [tuple, list, lambda pair: {"kind": pair[0], "place": pair[1]}])
def test_two_heads(container: Callable[[Any], Any]) -> None:
    def forward(n: Any, x: Tensor) -> Any:
        features = pooled(n.b(torch.relu(n.a(x))))
        return container((n.kind(features), n.place(n.hidden(features))))

    network = Net(
        forward,
        a=conv(3, 4),
        b=conv(4, 6),
        kind=nn.Linear(6, 5),
        hidden=nn.Linear(6, 8),
        place=nn.Linear(8, 4),
    )
    groups = by_name(network)
    assert {name: group.role for name, group in groups.items()} == {
        "a": "filters",
        "b": "representation",
        "kind": "output",
        "hidden": "representation",
        "place": "output",
    }
    assert set(groups["b"].consumers) == {"kind", "hidden"}


def test_a_convolution_as_head() -> None:
    network = Net(
        lambda n, x: torch.relu(n.head(torch.cat([n.b(torch.relu(n.a(x))), n.c(x)], 1))).mean((2, 3)),
        a=conv(3, 4),
        b=conv(4, 6),
        c=conv(3, 2),
        head=conv(8, 5, 1),
    )
    roles = {name: group.role for name, group in by_name(network).items()}
    assert roles == {"a": "filters", "b": "representation", "c": "representation", "head": "output"}


def test_a_network_without_a_head_keeps_its_features() -> None:
    groups = by_name(Net(lambda n, x: n.b(torch.relu(n.a(x))), a=conv(3, 4), b=conv(4, 6)))
    assert {name: group.role for name, group in groups.items()} == {"a": "representation", "b": "output"}


def test_a_grouped_transposed_convolution_keeps_as_many_channels_in_each_group() -> None:
    network = Net(
        lambda n, x: n.fc(pooled(n.b(n.a(x)))),
        a=conv(3, 6),
        b=nn.ConvTranspose2d(6, 4, 3, groups=2),
        fc=nn.Linear(4, 2),
    )
    assert (by_name(network)["a"].reason, by_name(network)["a"].blocks) == ("", 2)


# Properties


@given(seed=st.integers(0, 10_000), splits=st.booleans())
@settings(max_examples=30, deadline=None, derandomize=True)
def test_units_are_a_partition(random_network: Callable[..., nn.Module], seed: int, splits: bool) -> None:
    network = random_network(seed, splits=splits)
    groups = find_groups(network, torch.randn(1, *SHAPE))
    modules = dict(network.named_modules())
    taken: set[tuple[str, str, int]] = set()
    for group in groups:
        assert len({(member.module, member.axis) for member in group.members}) == len(group.members)
        for member in group.members:
            assert member.positions.shape[0] == group.width
            places = {(member.module, member.axis, int(position)) for position in member.positions.flat}
            assert len(places) == member.positions.size
            assert not places & taken
            taken |= places
    # Every channel of every layer but the image's is in a unit.
    expected = set()
    for name, layer in modules.items():
        if isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels == layer.out_channels:
            expected |= {(name, "channels", position) for position in range(layer.out_channels)}
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            inputs, outputs = (
                reversed(layer.weight.shape[:2])
                if isinstance(layer, nn.Linear)
                else (
                    layer.in_channels,
                    layer.out_channels,
                )
            )
            expected |= {(name, "out", position) for position in range(outputs)}
            if name != "layers.0":
                expected |= {(name, "in", position) for position in range(inputs)}
        elif isinstance(layer, nn.BatchNorm2d):
            expected |= {(name, "channels", position) for position in range(layer.num_features)}
    assert taken <= expected
    assert splits or taken == expected  # one part of a split may be read by a branch that leads nowhere


@given(seed=st.integers(0, 10_000))
@settings(max_examples=10, deadline=None, derandomize=True)
def test_finding_groups_changes_nothing(random_network: Callable[..., nn.Module], seed: int) -> None:
    network = random_network(seed)
    for parameter in list(network.parameters())[::2]:
        parameter.requires_grad_(False)
    flags = [parameter.requires_grad for parameter in network.parameters()]
    state = {key: value.clone() for key, value in network.state_dict().items()}
    first = find_groups(network, torch.randn(1, *SHAPE))
    again = find_groups(network, torch.randn(1, *SHAPE))
    assert [parameter.requires_grad for parameter in network.parameters()] == flags
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not network.training
    for module in network.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert [(group.name, positions(group)) for group in first] == [(group.name, positions(group)) for group in again]
