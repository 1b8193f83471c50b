"""What torch-pruning's tracing gets wrong, each in a minimal network: why we keep a tracer of our own.

Each test fails once a release mends its fault. ``docs/torch_pruning.md`` tells them to users.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn import functional as F

from small_networks import Net, conv, parameter
from torch_pruning_faults import dependency_graph, outcome, pruned_by, removed_from, still_a_fault, without

pytestmark = pytest.mark.slow  # what another release of torch-pruning may change

TRACER = "compress/graph/tracing/tracer.py and its op_* handlers"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def maps() -> Tensor:
    return torch.randn(2, 3, 6, 6)


# Splits


def second_part_first(n: Any, x: Tensor) -> Tensor:
    first, second = n.a(x).chunk(2, 1)
    out: Tensor = n.b(first) + n.c(second)  # autograd meets c, the reader of the second part, first
    return out


def middle_part_unread(n: Any, x: Tensor) -> Tensor:
    first, _, last = n.a(x).chunk(3, 1)
    out: Tensor = n.c(last) + n.b(first)
    return out


def part_read_twice(n: Any, x: Tensor) -> Tensor:
    first, second = n.a(x).chunk(2, 1)
    out: Tensor = n.b(first) + n.c(first) + n.d(second)
    return out


def equal_parts(n: Any, x: Tensor) -> Tensor:
    first, second = n.a(x).chunk(2, 1)
    out: Tensor = n.c(second) + n.b(first)
    return out


def split_and_concatenated(n: Any, x: Tensor) -> Tensor:
    first, second = n.a(x).chunk(2, 1)
    out: Tensor = n.d(torch.cat([first, n.b(second)], 1))
    return out


def res2net(n: Any, x: Tensor) -> Tensor:
    first, second, third, last = n.a(x).chunk(4, 1)
    first = n.b(first)
    second = n.c(first + second)
    out: Tensor = n.d(torch.cat([first, second, third, last], 1))
    return out


def shuffle(n: Any, x: Tensor) -> Tensor:
    out: Tensor = n.d(n.a(x).unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2))
    return out


def pixel_shuffle(n: Any, x: Tensor) -> Tensor:
    out: Tensor = n.b(F.pixel_shuffle(n.a(x), 2))
    return out


def merged_patches(n: Any, x: Tensor) -> Tensor:
    y = n.a(x).permute(0, 2, 3, 1)
    out: Tensor = n.b(torch.cat([y[:, 0::2], y[:, 1::2]], -1))
    return out


def flattened_tokens(n: Any, x: Tensor) -> Tensor:
    out: Tensor = n.b(n.a(x.flatten(2).transpose(1, 2)).flatten(1))
    return out


def mixed_tokens(n: Any, x: Tensor) -> Tensor:
    y = n.a(x).flatten(2)
    out: Tensor = n.b((y + n.c(y)).transpose(1, 2)).mean(1)
    return out


def spatial_gate(n: Any, x: Tensor) -> Tensor:
    y = n.a(x)
    out: Tensor = n.b(y * torch.sigmoid(n.c(y.mean(1, keepdim=True))))
    return out


def one_channel_gate(n: Any, x: Tensor) -> Tensor:
    y = n.a(x)
    out: Tensor = n.b(y * torch.sigmoid(n.c(y)))
    return out


def map_parameter(n: Any, x: Tensor) -> Tensor:
    out: Tensor = n.b(n.a(x) + n.position)
    return out


def frozen_stem(n: Any, x: Tensor) -> Tensor:
    y = n.c(x)
    out: Tensor = n.b(y + n.a(y))
    return out


def frozen(layer: nn.Module) -> nn.Module:
    return layer.requires_grad_(False)


CASES: dict[str, tuple[Callable[[Any, Tensor], Tensor], dict[str, Any], Sequence[int], str]] = {
    "parts of a split are numbered by when their readers are met": (
        second_part_first,
        {"a": conv(3, 8), "b": conv(4, 2), "c": conv(4, 2)},
        [0, 5],
        "wrong",
    ),
    "a part of a split that nobody reads is not counted": (
        middle_part_unread,
        {"a": conv(3, 12), "b": conv(4, 2), "c": conv(4, 2)},
        [0, 5, 10],
        "wrong",
    ),
    "a part of a split that is read twice counts twice": (
        part_read_twice,
        {"a": conv(3, 8), "b": conv(4, 2), "c": conv(4, 2), "d": conv(4, 2)},
        [1],
        "wrong",
    ),
    "equal parts of a chunk may lose different numbers": (
        equal_parts,
        {"a": conv(3, 8), "b": conv(4, 2), "c": conv(4, 2)},
        [0, 1],
        "raises",
    ),
    "a part of a split that is concatenated again takes part in nothing": (
        split_and_concatenated,
        {"a": conv(3, 8), "b": conv(4, 4), "d": conv(8, 2)},
        [0, 4],
        "raises",
    ),
    "a channel shuffle": (shuffle, {"a": conv(3, 6), "d": conv(6, 2)}, [0, 4], "wrong"),
    "a pixel shuffle": (pixel_shuffle, {"a": conv(3, 16), "b": conv(4, 2)}, [0, 1, 2, 3], "raises"),
    "slices of height, taken for channels": (
        merged_patches,
        {"a": conv(3, 4), "b": nn.Linear(8, 5)},
        [1],
        "raises",
    ),
    "tokens and channels flattened together": (
        flattened_tokens,
        {"a": nn.Linear(3, 4), "b": nn.Linear(144, 5)},
        [1],
        "raises",
    ),
    "token mixing (MLP-Mixer), taken for channel mixing": (
        mixed_tokens,
        {"a": conv(3, 4), "b": nn.Linear(4, 5), "c": nn.Linear(36, 36)},
        [1],
        "raises",
    ),
    "the mean over channels, taken for one of each": (
        spatial_gate,
        {"a": conv(3, 4), "b": conv(4, 2), "c": conv(1, 1)},
        [0],
        "raises",
    ),
    "a gate of one channel, taken for one of each": (
        one_channel_gate,
        {"a": conv(3, 4), "b": conv(4, 2), "c": conv(4, 1)},
        [0],
        "raises",
    ),
    "a parameter with a map for each channel is shrunk along its width": (
        map_parameter,
        {"a": conv(3, 4), "b": conv(4, 2), "position": parameter(4, 6, 6)},
        [1],
        "raises",
    ),
    "a frozen layer is not in the graph": (
        frozen_stem,
        {"a": conv(4, 4), "b": conv(4, 2), "c": frozen(conv(3, 4))},
        [1],
        "raises",
    ),
}


@pytest.mark.parametrize("what", CASES)
def test_removal_is_not_that_of_the_zeroed_network(what: str) -> None:
    forward, parts, units, expected = CASES[what]
    found = outcome(Net(forward, **parts), maps(), "a", units)
    still_a_fault(found == expected, f"{what} (now: {found})", TRACER)


def test_res2net() -> None:
    """Its sums of parts couple b's first channel with those of a that are removed."""
    network = Net(res2net, a=conv(3, 16), b=conv(4, 4), c=conv(4, 4), d=conv(16, 2)).eval()
    units = [0, 4, 8, 12]
    found = outcome(network, maps(), "a", units, without(without(network, "a", units), "b", [0]))
    still_a_fault(found == "wrong", f"res2net's parts (now: {found})", TRACER)


def test_a_split_that_is_concatenated_names_channels_that_the_layer_lacks() -> None:
    """So importances and pruners end in an IndexError: res2net and cspdarknet of timm."""
    network = Net(
        lambda n, x: (lambda y: n.d(torch.cat([y[1], y[0]], 1)))(n.a(x).chunk(2, 1)), a=conv(3, 8), d=conv(8, 2)
    )
    graph = dependency_graph(network, maps())
    group = graph.get_pruning_group(network.a, tp.prune_conv_out_channels, list(range(8)))
    named = [max(units) for dep, units in group if dep.target.module is network.a]
    still_a_fault(named == [15], "a split that is concatenated names channels up to 15 of 8", TRACER)


def test_a_gate_of_one_channel_is_left_with_a_negative_width() -> None:
    network = Net(one_channel_gate, a=conv(3, 4), b=conv(4, 2), c=conv(4, 1))
    gate = removed_from(network, maps(), "a", [1, 2]).get_submodule("c")
    still_a_fault(gate.out_channels == -1, "a gate of one channel loses two", TRACER)


def test_units_that_are_reached_on_two_ways_are_not_asked_for_once() -> None:
    """A gated unit: 16 pairs. Half of the 32 channels is asked for; the lower half are all in one part."""
    gated = Net(
        lambda n, x: (lambda y: n.c(y[0] * torch.sigmoid(y[1])))(n.a(x).chunk(2, 1)), a=conv(3, 32), c=conv(16, 2)
    )
    with torch.no_grad():
        gated.a.weight[:16] *= 1e-3  # type: ignore[union-attr, operator, index]
        gated.c.weight *= 1e-6  # type: ignore[union-attr, operator]
    pruned = pruned_by(gated, maps(), pruning_ratio=0.5, ignored_layers=[gated.c])
    width = pruned.get_submodule("a").out_channels
    still_a_fault(width == 32, "channels that come in pairs are ranked one by one, and then left dense", TRACER)


def test_a_batch_of_one_is_taken_apart() -> None:
    seen: list[tuple[int, ...]] = []
    network = Net(lambda n, x: (seen.append(tuple(x.shape)), n.b(n.a(x)))[1], a=conv(3, 4), b=conv(4, 2))
    dependency_graph(network, torch.randn(1, 3, 6, 6))
    still_a_fault(seen == [(3, 6, 6)], "of an example with one image the network is given the image", TRACER)
