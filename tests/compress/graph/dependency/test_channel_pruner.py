"""torch-pruning's pruners on our graph: what they remove does what zeroing does, on networks that theirs cannot do."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_pruning
import torchvision
from torch import nn

from graph_cases import NETWORKS, X, check_removal, made
from pruneport.compress.graph.dependency.channel_pruner import ChannelPruner
from pruneport.errors import PruningError
from small_networks import Net, conv, pooled

IMPORTANCES = {
    "magnitude": torch_pruning.importance.GroupMagnitudeImportance,
    "lamp": torch_pruning.importance.LAMPImportance,
    "taylor": torch_pruning.importance.GroupTaylorImportance,
}
FAILING: dict[str, Callable[[], nn.Module]] = {
    "shufflenet": lambda: torchvision.models.shufflenet_v2_x0_5(weights=None),
    "vit": lambda: torchvision.models.VisionTransformer(64, 16, 2, 4, 64, 128, num_classes=10),
    "swin": lambda: torchvision.models.SwinTransformer([4, 4], 32, [2, 2], [2, 4], [7, 7], num_classes=10),
}
"""torchvision's networks that torch-pruning's own tracing fails on; the last two of fewer and narrower layers."""
MODES: dict[str, dict[str, Any]] = {
    "local": {},
    "global": {"global_pruning": True, "max_pruning_ratio": 0.8},
    "iterative": {"iterative_steps": 3},
}


@pytest.mark.parametrize(
    ("importance", "mode"), [*(("magnitude", mode) for mode in MODES), ("lamp", "global"), ("taylor", "iterative")]
)
@pytest.mark.parametrize("name", NETWORKS)
def test_pruners_of_every_kind(name: str, importance: str, mode: str) -> None:
    dense = made(name)
    network = copy.deepcopy(dense)
    pruner = ChannelPruner(network, X, IMPORTANCES[importance](), pruning_ratio=0.4, **MODES[mode])
    for _ in range(MODES[mode].get("iterative_steps", 1)):
        network.zero_grad()
        network(X).square().sum().backward()
        pruner.step()
    network.zero_grad()
    before, after = (sum(parameter.numel() for parameter in net.parameters()) for net in (dense, network))
    assert after < 0.8 * before
    assert network(X).shape == dense(X).shape
    check_removal(dense, pruner.DG, exact=False)


def test_a_unit_of_several_channels_goes_as_a_whole() -> None:
    torch.manual_seed(0)
    network = Net(lambda n, x: n.fc(pooled(n.b(n.a(x)))), a=conv(3, 32), b=conv(32, 32, groups=8), fc=nn.Linear(32, 2))
    ChannelPruner(network.eval(), X, torch_pruning.importance.GroupMagnitudeImportance(), pruning_ratio=0.5).step()
    assert (network.a.out_channels, network.b.groups, network.b.in_channels) == (16, 4, 16)


def test_narrow_channel_groups_may_lose_channels_inside() -> None:
    torch.manual_seed(0)
    dense = Net(lambda n, x: n.fc(pooled(n.b(n.a(x)))), a=conv(3, 32), b=conv(32, 32, groups=8), fc=nn.Linear(32, 2))
    network = copy.deepcopy(dense.eval())
    pruner = ChannelPruner(
        network,
        X,
        torch_pruning.importance.GroupMagnitudeImportance(),
        pruning_ratio=0.5,
        whole_channel_groups=False,
    )
    pruner.step()
    assert (network.a.out_channels, network.b.groups, network.b.in_channels, network.b.out_channels) == (16, 8, 16, 16)
    check_removal(dense, pruner.DG)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAILING)
def test_networks_that_torch_pruning_fails_on(name: str) -> None:
    torch.manual_seed(0)
    dense = FAILING[name]().eval()
    for parameter in dense.parameters():
        if not parameter.any():  # as the output layer of a fresh ViT, behind which nothing shows
            nn.init.normal_(parameter, std=0.02)
    example = torch.randn(1, 3, 64, 64)
    network = copy.deepcopy(dense)
    pruner = ChannelPruner(
        network, example, torch_pruning.importance.GroupMagnitudeImportance(), pruning_ratio=0.5, global_pruning=True
    )
    pruner.step()
    assert sum(p.numel() for p in network.parameters()) < 0.6 * sum(p.numel() for p in dense.parameters())
    check_removal(dense, pruner.DG, inputs=example)


def test_two_pruners_share_no_settings() -> None:
    """torch-pruning's own have their dicts as defaults, so that one pruner's layers are another's."""
    first, second = (
        ChannelPruner(made("grouped"), X, torch_pruning.importance.RandomImportance(), pruning_ratio=0.5)
        for _ in range(2)
    )
    assert first.out_channel_groups.keys().isdisjoint(second.out_channel_groups)
    assert not any(isinstance(d, dict) and d for d in torch_pruning.pruner.BasePruner.__init__.__defaults__)


def test_others_of_torch_prunings_pruners_take_the_graph() -> None:
    class Pruner(torch_pruning.pruner.GroupNormPruner, ChannelPruner):
        pass

    dense = made("shuffle")
    network = copy.deepcopy(dense)
    pruner = Pruner(network, X, torch_pruning.importance.GroupMagnitudeImportance(), pruning_ratio=0.5)
    pruner.update_regularizer()
    network(X).sum().backward()
    pruner.regularize(network)
    network.zero_grad()
    pruner.step()
    assert network.a.out_channels == 6
    check_removal(dense, pruner.DG)


def test_what_the_graph_finds_itself_is_refused() -> None:
    network = made("attention")
    with pytest.raises(PruningError, match="`num_heads` do not fit"):
        ChannelPruner(network, X, torch_pruning.importance.RandomImportance(), num_heads={network.qkv: 2})
