"""Criteria: the scores are torch-pruning's on the same groups; random ones are seeded."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch_pruning as tp
import torchvision
from torch import nn

from pruneport.compress.criteria import CRITERIA, score_groups
from pruneport.compress.groups import find_groups
from pruneport.compress.layers import weight_by_channel

SHAPE = (3, 32, 32)


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = torchvision.models.resnet18(num_classes=7).eval()
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.normal_(layer.weight)
    return network


@pytest.mark.parametrize(("criterion", "power"), [("l1", 1), ("l2", 2)])
def test_scores_are_torch_prunings(resnet: nn.Module, criterion: str, power: int) -> None:
    groups = find_groups(resnet, torch.randn(1, *SHAPE))
    ours = score_groups(resnet, groups, [True] * len(groups), criterion, seed=0)
    graph = tp.DependencyGraph().build_dependency(resnet, example_inputs=torch.randn(1, *SHAPE))
    importance = tp.importance.MagnitudeImportance(p=power, group_reduction="mean", normalizer=None, bias=False)
    compared = 0
    for group, scores in zip(groups, ours, strict=True):
        root = resnet.get_submodule(group.name)
        prune = tp.prune_linear_out_channels if isinstance(root, nn.Linear) else tp.prune_conv_out_channels
        theirs = importance(graph.get_pruning_group(root, prune, list(range(group.width)))).double().numpy()
        producer = next(member for member in group.members if (member.module, member.axis) == (group.name, "out"))
        assert np.array_equal(producer.positions.ravel(), np.arange(group.width))
        np.testing.assert_allclose(scores, theirs / theirs.mean(), rtol=1e-4)
        compared += 1
    assert compared == len(groups) == 13


def test_scores_of_a_flattened_group_by_hand() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)).eval()
    group = next(g for g in find_groups(network, torch.randn(1, 3, 8, 8)) if g.name == "0")
    first, second = network[0].weight.detach(), network[3].weight.detach()
    expected = [(first[unit].abs().sum() + second[:, 36 * unit : 36 * unit + 36].abs().sum()) / 2 for unit in range(4)]
    raw = CRITERIA["l1"](network, group, torch.Generator())
    torch.testing.assert_close(raw, torch.stack(expected).double(), rtol=1e-5, atol=0)


def test_weights_of_grouped_convolutions_by_input() -> None:
    network = nn.Sequential(nn.Conv2d(6, 8, 3, groups=2))
    found = weight_by_channel(network, "0", "in")
    assert found is not None
    weight = network[0].weight.detach()
    for channel in range(6):
        rows = weight[:4] if channel < 3 else weight[4:]
        assert found[channel].abs().sum().item() == pytest.approx(rows[:, channel % 3].abs().sum().item(), rel=1e-5)


@pytest.mark.parametrize("criterion", sorted(CRITERIA))
def test_scores_have_mean_one_and_leave_the_weights(criterion: str, random_network: Callable[..., nn.Module]) -> None:
    network = random_network(11)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    before = torch.get_rng_state()
    groups = find_groups(network, torch.randn(1, 3, 8, 8))
    torch.set_rng_state(before)
    free = [index % 2 == 0 for index in range(len(groups))]
    scores = score_groups(network, groups, free, criterion, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    for group, score, is_free in zip(groups, scores, free, strict=True):
        assert score.shape == (group.width,)
        assert score.mean() == pytest.approx(1)
        assert is_free or (score == 1).all()
        assert not is_free or group.width == 1 or score.std() > 0


def test_random_scores_follow_the_seed(random_network: Callable[..., nn.Module]) -> None:
    network = random_network(5)
    groups = find_groups(network, torch.randn(1, 3, 8, 8))

    def scores(seed: int) -> np.ndarray:
        return np.concatenate(score_groups(network, groups, [True] * len(groups), "random", seed))

    assert np.array_equal(scores(1), scores(1))
    assert not np.array_equal(scores(1), scores(2))


def test_weights_that_are_all_zero_score_one() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3)).eval()
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    groups = find_groups(network, torch.randn(1, 3, 8, 8))
    for score in score_groups(network, groups, [True] * len(groups), "l1", 0):
        assert (score == 1).all()
