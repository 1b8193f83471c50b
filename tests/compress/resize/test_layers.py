"""Every layer type of the table shrinks to the slices that plain indexing gives, and is zeroed where it would."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, weight_norm

from pruneport.compress.resize.layer_types import LAYERS, removed_whole
from pruneport.compress.resize.layers import (
    axis_size,
    block_count,
    narrow,
    ties_kept,
    weight_by_channel,
    zero_channels,
)
from pruneport.errors import PruningError
from small_networks import Net, parameter

Keep = Mapping[str, list[int]]
Slices = Callable[[dict[str, Tensor]], dict[str, Tensor]]

# What a layer is, what it keeps, what its tensors must be then, by indexing alone, and its attributes.
CASES: dict[str, tuple[Callable[[], nn.Module], Keep, Slices, dict[str, Any]]] = {
    "convolution": (
        lambda: nn.Conv2d(6, 5, 3),
        {"out": [0, 3], "in": [1, 2, 5]},
        lambda t: {"weight": t["weight"][[0, 3]][:, [1, 2, 5]], "bias": t["bias"][[0, 3]]},
        {"in_channels": 3, "out_channels": 2, "groups": 1},
    ),
    "convolution of one dimension without a bias": (
        lambda: nn.Conv1d(6, 5, 3, bias=False),
        {"in": [4]},
        lambda t: {"weight": t["weight"][:, [4]]},
        {"in_channels": 1, "out_channels": 5},
    ),
    "transposed convolution": (
        lambda: nn.ConvTranspose2d(6, 5, 3),
        {"out": [0, 3], "in": [1, 2, 5]},
        lambda t: {"weight": t["weight"][[1, 2, 5]][:, [0, 3]], "bias": t["bias"][[0, 3]]},
        {"in_channels": 3, "out_channels": 2},
    ),
    "depthwise convolution": (
        lambda: nn.Conv2d(4, 4, 3, groups=4),
        {"channels": [1, 3]},
        lambda t: {"weight": t["weight"][[1, 3]], "bias": t["bias"][[1, 3]]},
        {"in_channels": 2, "out_channels": 2, "groups": 2},
    ),
    "depthwise convolution of two outputs a channel": (
        lambda: nn.Conv2d(4, 8, 3, groups=4),
        {"channels": [2, 3, 6, 7]},
        lambda t: {"weight": t["weight"][[2, 3, 6, 7]], "bias": t["bias"][[2, 3, 6, 7]]},
        {"in_channels": 2, "out_channels": 4, "groups": 2},
    ),
    "transposed depthwise convolution": (
        lambda: nn.ConvTranspose2d(4, 8, 3, groups=4),
        {"channels": [2, 3, 6, 7]},
        lambda t: {"weight": t["weight"][[1, 3]], "bias": t["bias"][[2, 3, 6, 7]]},
        {"in_channels": 2, "out_channels": 4, "groups": 2},
    ),
    "grouped convolution of wide groups": (  # two of 16 inputs and 17 outputs
        lambda: nn.Conv2d(32, 34, 1, groups=2),
        {"in": [0, 5, 16, 31], "out": [2, 16, 17, 20]},
        lambda t: {
            "weight": torch.cat([t["weight"][[2, 16]][:, [0, 5]], t["weight"][[17, 20]][:, [0, 15]]]),
            "bias": t["bias"][[2, 16, 17, 20]],
        },
        {"in_channels": 4, "out_channels": 4, "groups": 2},
    ),
    "grouped convolution of narrow groups, which go as a whole": (
        lambda: nn.Conv2d(8, 12, 3, groups=4),
        {"in": [2, 3, 6, 7], "out": [3, 4, 5, 9, 10, 11]},
        lambda t: {"weight": t["weight"][[3, 4, 5, 9, 10, 11]], "bias": t["bias"][[3, 4, 5, 9, 10, 11]]},
        {"in_channels": 4, "out_channels": 6, "groups": 2},
    ),
    "grouped transposed convolution": (
        lambda: nn.ConvTranspose2d(6, 4, 3, groups=2),
        {"in": [0, 2, 3, 4], "out": [1, 2]},
        lambda t: {
            "weight": torch.cat([t["weight"][[0, 2]][:, [1]], t["weight"][[3, 4]][:, [0]]]),
            "bias": t["bias"][[1, 2]],
        },
        {"in_channels": 4, "out_channels": 2, "groups": 2},
    ),
    "linear": (
        lambda: nn.Linear(6, 5),
        {"out": [4], "in": [0, 1]},
        lambda t: {"weight": t["weight"][[4]][:, [0, 1]], "bias": t["bias"][[4]]},
        {"in_features": 2, "out_features": 1},
    ),
    **{
        f"{kind.__name__}": (
            lambda kind=kind: kind(4),
            {"channels": [0, 2, 3]},
            lambda t: {
                name: tensor if name == "num_batches_tracked" else tensor[[0, 2, 3]] for name, tensor in t.items()
            },
            {"num_features": 3},
        )
        for kind in (nn.BatchNorm1d, nn.BatchNorm2d)
    },
    "instance norm": (
        lambda: nn.InstanceNorm2d(4, affine=True),
        {"channels": [3]},
        lambda t: {"weight": t["weight"][[3]], "bias": t["bias"][[3]]},
        {"num_features": 1},
    ),
    "instance norm without parameters": (
        lambda: nn.InstanceNorm2d(4),
        {"channels": [0, 3]},
        lambda t: {},
        {"num_features": 2},
    ),
    "layer norm": (
        lambda: nn.LayerNorm(4),
        {"channels": [1, 2]},
        lambda t: {"weight": t["weight"][[1, 2]], "bias": t["bias"][[1, 2]]},
        {"normalized_shape": (2,)},
    ),
    "group norm": (
        lambda: nn.GroupNorm(2, 6),
        {"channels": [0, 2, 3, 4]},
        lambda t: {"weight": t["weight"][[0, 2, 3, 4]], "bias": t["bias"][[0, 2, 3, 4]]},
        {"num_channels": 4, "num_groups": 2},
    ),
    "prelu": (
        lambda: nn.PReLU(4),
        {"channels": [1, 2]},
        lambda t: {"weight": t["weight"][[1, 2]]},
        {"num_parameters": 2},
    ),
    "prelu of one slope": (lambda: nn.PReLU(), {"channels": [1, 2]}, lambda t: t, {"num_parameters": 1}),
    "attention": (
        lambda: nn.MultiheadAttention(4, 2),
        {"channels": [0, 2, 4, 6, 8, 10], "in": [0, 1, 3]},
        lambda t: t | {
            "in_proj_weight": t["in_proj_weight"][::2][:, [0, 1, 3]],
            "in_proj_bias": t["in_proj_bias"][::2],
        },
        {"embed_dim": 3, "kdim": 3, "vdim": 3, "num_heads": 2},
    ),
}  # fmt: skip


@pytest.fixture(params=CASES, ids=[name.replace(" ", "-") for name in CASES])
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Keep, Slices, dict[str, Any]]:
    build, keep, slices, attributes = CASES[request.param]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = build()
        for tensor in layer.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
    return nn.Sequential(layer), keep, slices, attributes


def tensors_of(layer: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in layer.state_dict().items()}


def test_a_layer_shrinks_to_its_slices(case: Any) -> None:
    network, keep, slices, attributes = case
    expected = slices(tensors_of(network[0]))
    narrow(network, "0", keep)
    actual = tensors_of(network[0])
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, rtol=0, atol=0)
    assert {name: getattr(network[0], name) for name in attributes} == attributes


@torch.no_grad()
def test_what_shrinking_would_remove_is_zeroed_and_nothing_else(case: Any) -> None:
    network, keep, slices, _ = case
    if isinstance(network[0], nn.PReLU) and network[0].num_parameters == 1:
        return  # its slope is of all channels
    before = tensors_of(network[0])
    places = {name: torch.arange(tensor.numel()).reshape(tensor.shape) for name, tensor in before.items()}
    kept = slices(places)
    zero_channels(network, "0", keep)
    for name, tensor in tensors_of(network[0]).items():
        stays = torch.isin(places[name], kept[name])
        if name.startswith("running"):  # statistics are as they were
            stays = torch.ones_like(stays)
        assert torch.equal(tensor, torch.where(stays, before[name], torch.zeros_like(tensor))), name


def test_every_type_of_the_table_is_shrunk_above() -> None:
    built = [build() for build, *_ in CASES.values()]
    for kind in LAYERS:
        assert any(isinstance(layer, kind) for layer in built), kind


def test_a_layer_of_another_type_is_refused() -> None:
    with pytest.raises(PruningError, match="a Bilinear cannot be resized; expected one of ConvNd, Linear, BatchNorm"):
        narrow(nn.Sequential(nn.Bilinear(2, 2, 2)), "0", {"out": [0]})


@pytest.mark.parametrize(
    ("layer", "sizes"),
    [
        (nn.Conv2d(6, 5, 3), {"in": 6, "out": 5, "channels": 0}),
        (nn.Conv2d(4, 8, 3, groups=4), {"channels": 8}),
        (nn.Linear(6, 5), {"in": 6, "out": 5, "channels": 0}),
        (nn.LayerNorm(4), {"channels": 4, "in": 0}),
        (nn.GroupNorm(2, 6), {"channels": 6}),
        (nn.PReLU(3), {"channels": 3}),
        (nn.MultiheadAttention(4, 2), {"in": 4, "channels": 12}),
        (nn.Parameter(torch.zeros(2, 3)), {"dim0": 2, "dim1": 3, "dim2": 0, "in": 0}),
    ],
)
def test_sizes_of_axes(layer: Any, sizes: dict[str, int]) -> None:
    assert {axis: axis_size(layer, axis) for axis in sizes} == sizes


def test_blocks_that_must_stay_equally_wide() -> None:
    wide, narrow_groups = nn.Conv2d(64, 64, 3, groups=4), nn.Conv2d(8, 12, 3, groups=4)
    assert (removed_whole(wide), removed_whole(narrow_groups)) == (False, True)
    assert [block_count(layer, "in") for layer in (wide, narrow_groups, nn.Conv2d(4, 4, 3))] == [4, 1, 1]
    assert block_count(nn.Conv2d(4, 4, 3, groups=4), "channels") == 1
    assert block_count(nn.GroupNorm(2, 6), "channels") == 2


@pytest.mark.parametrize("axis", ["in", "out"])
@pytest.mark.parametrize(
    "layer", [nn.Conv2d(6, 4, 3, groups=2), nn.ConvTranspose2d(6, 4, 3, groups=2), nn.Linear(6, 4)]
)
def test_the_weight_by_channel_is_what_the_channel_meets(layer: Any, axis: str) -> None:
    """A channel's row holds all weights, and no others, on which the outputs depend through it."""
    network = nn.Sequential(layer)
    rows = weight_by_channel(network, "0", axis)
    assert rows is not None
    shape = (1, 6) if isinstance(layer, nn.Linear) else (1, 6, 5, 5)
    for channel in range(axis_size(layer, axis)):
        inputs = torch.ones(shape)
        if axis == "in":
            inputs[:, [place for place in range(6) if place != channel]] = 0
        outputs = layer(inputs)
        (outputs if axis == "in" else outputs[:, channel]).sum().backward()
        met = layer.weight.detach()[layer.weight.grad != 0]
        assert sorted(rows[channel].tolist()) == sorted(met.tolist())
        layer.zero_grad()


def test_a_parameter_that_no_layer_owns_shrinks_along_its_dimensions() -> None:
    network = Net(lambda n, x: x, table=parameter(3, 4))
    before = network.table.detach().clone()
    rows = weight_by_channel(network, "table", "dim1")
    assert torch.equal(rows, before.T)  # type: ignore[arg-type]
    zeroed = copy.deepcopy(network)
    zero_channels(zeroed, "table", {"dim1": [0, 3]})
    assert torch.equal(zeroed.table, before * torch.tensor([1, 0, 0, 1]))
    narrow(network, "table", {"dim0": [2], "dim1": [0, 3]})
    assert torch.equal(network.table, before[[2]][:, [0, 3]])


def masked(layer: nn.Module) -> nn.Module:
    return prune.l1_unstructured(layer, "weight", 0.5)  # type: ignore[no-any-return, no-untyped-call]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, parametrizations.spectral_norm, weight_norm, masked])
def test_a_weight_that_is_computed_from_others_becomes_a_plain_one(wrap: Callable[..., nn.Module]) -> None:
    network = nn.Sequential(wrap(nn.Linear(6, 5))).eval()
    inputs = torch.randn(2, 6)
    expected = network(inputs)[:, [0, 3]].detach()
    narrow(network, "0", {"out": [0, 3]})
    assert {name for name, _ in network.named_parameters()} == {"0.weight", "0.bias"}
    torch.testing.assert_close(network(inputs).detach(), expected)


def test_one_parameter_under_two_names_stays_one() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    network[1].weight = network[0].weight
    keep: dict[str, Keep] = {name: {"in": [0, 1], "out": [2, 3]} for name in "01"}
    with ties_kept(network, keep):
        for name, axes in keep.items():
            narrow(network, name, axes)
    assert network[0].weight is network[1].weight
    assert network[0].weight.shape == (2, 2)


def test_a_frozen_parameter_stays_frozen() -> None:
    network = nn.Sequential(nn.Linear(4, 4).requires_grad_(False))
    narrow(network, "0", {"in": [0], "out": [1]})
    assert not any(tensor.requires_grad for tensor in network.parameters())
