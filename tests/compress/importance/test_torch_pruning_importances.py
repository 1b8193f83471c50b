"""torch-pruning's importances: the oracle of our criteria where they are right, and where they are not.

Their mean over layers without a normaliser is what ours reduce to, so scores are compared unit by unit, up to one
factor for each group. What is wrong is held against the published formula in float64; each such test fails once a
release mends it. ``docs/torch_pruning.md`` tells them to users.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn import functional as F

from pruneport.compress.activations.calibration import Calibration, in_memory
from pruneport.compress.graph.groups import Group, find_groups
from pruneport.compress.importance.criteria import score_groups
from pruneport.compress.records import Calibrated
from small_networks import Net, conv, pooled
from torch_pruning_faults import dependency_graph, still_a_fault

REDUCE = "compress/importance/group_scores.py"
PLAIN: dict[str, Any] = {"group_reduction": "mean", "normalizer": None}
Importance = tp.importance.Importance


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def whole_group(network: nn.Module, example: Tensor, layer: str) -> Any:
    """torch-pruning's group of all output channels of a layer."""
    graph = dependency_graph(network, example)
    root = network.get_submodule(layer)
    every = list(range(graph.get_out_channels(root)))
    return graph.get_pruning_group(root, graph.get_pruner_of_module(root).prune_out_channels, every)


def ours(network: nn.Module, example: Tensor, criterion: str, given: Calibration | None = None) -> dict[str, Any]:
    """The groups by the name of their first layer, and their scores by our criterion."""
    groups = find_groups(network, example)
    free = [criterion != "bn-scale" or not isinstance(network.get_submodule(g.name), nn.Linear) for g in groups]
    scores = score_groups(network, groups, free, criterion, 0, tuple(example.shape[1:]), given)
    return {g.name: (g, found) for g, found, is_free in zip(groups, scores, free, strict=True) if is_free}


def assert_proportional(found: np.ndarray, wanted: Tensor, rtol: float = 1e-4) -> None:
    expected = wanted.detach().double().numpy()
    np.testing.assert_allclose(found / found.sum(), expected / expected.sum(), rtol=rtol)


def same(found: Tensor, wanted: Tensor) -> bool:
    return torch.allclose(found.double(), wanted.double(), rtol=1e-4, atol=0)


def out(tensor: Tensor) -> Tensor:
    """Sums over all but the output channels, in float64."""
    return tensor.detach().double().flatten(1).sum(1)


def into(tensor: Tensor) -> Tensor:
    """Sums over all but the input channels, in float64."""
    return out(tensor.transpose(0, 1))


# Where theirs are right


@pytest.mark.parametrize(
    ("criterion", "importance"),
    [
        ("l1", tp.importance.MagnitudeImportance(p=1, **PLAIN)),
        ("l2", tp.importance.MagnitudeImportance(p=2, **PLAIN)),
        ("lamp", tp.importance.LAMPImportance(p=2)),
        ("bn-scale", tp.importance.BNScaleImportance(**PLAIN)),
    ],
)
def test_weights_are_scored_as_by_torch_pruning(resnet: nn.Module, criterion: str, importance: Importance) -> None:
    example = torch.randn(2, 3, 32, 32)
    network = copy.deepcopy(resnet)
    found = ours(network, example, criterion)
    for name, (group, scores) in found.items():
        assert_proportional(scores, importance(in_order(group, network, example, name)))
    assert len(found) == (12 if criterion == "bn-scale" else 13)


def in_order(group: Group, network: nn.Module, example: Tensor, name: str) -> Any:
    """Their group, once it is sure that its units are numbered as ours."""
    producer = next(member for member in group.members if (member.module, member.axis) == (name, "out"))
    assert np.array_equal(producer.positions.ravel(), np.arange(group.width))
    return whole_group(network, example, name)


@pytest.mark.slow
def test_fisher_is_their_hessian_once_its_accumulation_is_mended(resnet: nn.Module) -> None:
    images, labels = torch.randn(6, 3, 32, 32), torch.tensor([0, 1, 2, 3, 4, 5])
    network = copy.deepcopy(resnet)
    found = ours(network, images[:2], "fisher", calibration(images, labels, 7))
    squares = mean_squared_gradients(network, images, labels)
    for name, parameter in network.named_parameters():
        parameter.grad = squares[name].float()
    importance = tp.importance.HessianImportance(**PLAIN)
    for name, (group, scores) in found.items():
        assert_proportional(scores, importance(in_order(group, network, images[:2], name)), rtol=1e-3)


def calibration(images: Tensor, labels: Tensor, classes: int) -> Calibration:
    record = Calibrated(inputs="images", count=len(images))
    return Calibration(batches=in_memory([images]), labels=(labels,), classes=classes, record=record)


def mean_squared_gradients(network: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Of the loss of one image at a time, in float64."""
    squares: dict[str, Tensor] = {}
    for image, label in zip(images, labels, strict=True):
        network.zero_grad()
        F.cross_entropy(network(image[None]), label[None]).backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None
            squares[name] = squares.get(name, 0) + parameter.grad.double().square() / len(images)
    return squares


def test_taylor_is_the_square_of_theirs_where_all_layers_say_the_same() -> None:
    """Without biases and BatchNorms, what feeds a unit and what reads it change the loss alike (ReLU)."""
    network = nn.Sequential(conv(3, 6, bias=False), nn.ReLU(), conv(6, 7, bias=False), nn.ReLU(), Head(7)).eval()
    images, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    _, scores = ours(network, images[:2], "taylor", calibration(images, labels, 5))["0"]
    F.cross_entropy(network(images), labels).backward()
    theirs = tp.importance.TaylorImportance(multivariable=True, **PLAIN)(whole_group(network, images[:2], "0"))
    assert_proportional(scores, theirs.square(), rtol=1e-3)


class Head(nn.Linear):
    """Scores of 5 classes from the means of maps."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(pooled(x))


# Where they are wrong


def test_hessian_keeps_the_last_image_alone() -> None:
    """``accumulate_grad`` looks for a parameter's name among parameters."""
    network = nn.Sequential(conv(3, 6), nn.ReLU(), conv(6, 4), Head(4)).eval()
    images, labels = torch.randn(4, 3, 6, 6), torch.tensor([0, 1, 2, 3])
    importance = tp.importance.HessianImportance(**PLAIN)
    group = whole_group(network, images[:2], "0")
    for image, label in zip(images, labels, strict=True):
        network.zero_grad()
        F.cross_entropy(network(image[None]), label[None]).backward()
        importance.accumulate_grad(network)
    found = importance(group)
    weights = {name: parameter.detach().double().square() for name, parameter in network.named_parameters()}
    last = mean_squared_gradients(network, images[-1:], labels[-1:])
    every = mean_squared_gradients(network, images, labels)
    published, of_last = (
        (out(weights["0.weight"] * g["0.weight"]) + into(weights["2.weight"] * g["2.weight"])) / 2
        for g in (every, last)
    )
    still_a_fault(same(found, of_last) and not same(found, published), "Hessian adds up over images", "fisher")


def test_hessian_never_reads_the_biases_of_batch_norms() -> None:
    """The condition on their gradient is turned around."""
    network = nn.Sequential(conv(3, 6, bias=False), nn.BatchNorm2d(6), conv(6, 4), Head(4)).eval()
    nn.init.normal_(network[1].bias)
    F.cross_entropy(network(torch.randn(2, 3, 6, 6)), torch.tensor([0, 1])).backward()
    group = whole_group(network, torch.randn(2, 3, 6, 6), "0")
    scores = [tp.importance.HessianImportance(bias=bias, **PLAIN)(group) for bias in (False, True)]
    still_a_fault(torch.equal(*scores), "with bias=True BatchNorms' biases count", "fisher")


@pytest.mark.parametrize("criterion", ["l2", "lamp"])
def test_depthwise_weights_do_not_count(criterion: str) -> None:
    network = nn.Sequential(conv(3, 6), conv(6, 6, groups=6), conv(6, 4)).eval()
    example = torch.randn(2, 3, 6, 6)
    squares = [layer.weight.double().square() for layer in network]
    counted = out(squares[0]) + out(squares[1]) + into(squares[2])
    uncounted = out(squares[0]) + into(squares[2])
    importance = {
        "l2": tp.importance.MagnitudeImportance(p=2, **PLAIN),
        "lamp": tp.importance.LAMPImportance(p=2),
    }[criterion]
    found = importance(whole_group(network, example, "0"))
    expected = uncounted / 2 if criterion == "l2" else lamp(uncounted)
    still_a_fault(same(found, expected), f"{criterion} counts depthwise weights", REDUCE)
    _, scores = ours(network, example, criterion)["0"]
    assert_proportional(scores, counted if criterion == "l2" else lamp(counted))


def lamp(squares: Tensor) -> Tensor:
    """Each over the sum of all that are at least as large (arXiv 2010.07611, equation 5)."""
    return torch.stack([unit / squares[squares >= unit].sum() for unit in squares])


def test_inputs_of_grouped_convolutions_get_the_sum_over_all_groups() -> None:
    network = nn.Sequential(conv(3, 6), conv(6, 8, groups=2)).eval()
    example = torch.randn(2, 3, 6, 6)
    first, second = (layer.weight.double().square() for layer in network)
    right = out(first) + torch.cat([into(second[:4]), into(second[4:])])
    found = tp.importance.MagnitudeImportance(p=2, **PLAIN)(whole_group(network, example, "0"))
    still_a_fault(same(found, (out(first) + into(second).repeat(2)) / 2), "each group has its own inputs", REDUCE)
    group, scores = ours(network, example, "l2")["0"]
    assert_proportional(scores, right[torch.from_numpy(group.members[0].positions)].sum(1))


def test_the_gains_of_group_norms_do_not_count() -> None:
    network = nn.Sequential(conv(3, 6), nn.GroupNorm(1, 6), conv(6, 4)).eval()
    nn.init.normal_(network[1].weight)
    found = tp.importance.MagnitudeImportance(p=2, **PLAIN)(whole_group(network, torch.randn(2, 3, 6, 6), "0"))
    uncounted = (out(network[0].weight.square()) + into(network[2].weight.square())) / 2
    still_a_fault(same(found, uncounted), "gains of GroupNorms count, as those of BatchNorms and LayerNorms", REDUCE)


def test_layer_norms_over_maps_end_in_an_error() -> None:
    network = nn.Sequential(conv(3, 6), nn.LayerNorm([6, 6, 6]), conv(6, 4)).eval()
    group = whole_group(network, torch.randn(2, 3, 6, 6), "0")
    try:
        tp.importance.MagnitudeImportance(**PLAIN)(group)
    except RuntimeError:
        return
    still_a_fault(False, "LayerNorms over channels, height and width are scored", REDUCE)


def test_taylor_does_not_read_the_gains_of_batch_norms_and_adds_absolute_changes() -> None:
    """It asks for a GroupNorm among BatchNorms; and |a| + |b| is not |a + b|, the change to first order."""
    network = nn.Sequential(conv(3, 6), nn.BatchNorm2d(6), conv(6, 4), Head(4)).eval()
    nn.init.normal_(network[1].weight)
    nn.init.normal_(network[1].bias)
    images, labels = torch.randn(4, 3, 6, 6), torch.tensor([0, 1, 2, 3])
    F.cross_entropy(network(images), labels).backward()
    found = tp.importance.TaylorImportance(multivariable=True, **PLAIN)(whole_group(network, images[:2], "0"))
    first, gains, last = (layer.weight.double() * layer.weight.grad.double() for layer in list(network)[:3])
    published = ((out(first) + gains.detach() + into(last)) / 3).square()
    theirs = (out(first).abs() + into(last).abs()) / 2
    still_a_fault(same(found, theirs), "Taylor's sum is over all layers, BatchNorms too", "gradients.taylor")
    _, scores = ours(network, images[:2], "taylor", calibration(images, labels, 5))["0"]
    assert_proportional(scores, published, rtol=1e-3)
    assert not same(theirs.square() / theirs.square().sum(), published / published.sum())


def test_taylor_sorts_the_indices_of_the_group_and_not_its_roots() -> None:
    """It scores other channels than those asked for where they are not in order, and changes the group."""
    network = nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 4), Head(4)).eval()
    images = torch.randn(2, 3, 6, 6)
    F.cross_entropy(network(images), torch.tensor([0, 1])).backward()
    graph = dependency_graph(network, images)
    taylor, magnitude = tp.importance.TaylorImportance(**PLAIN), tp.importance.MagnitudeImportance(**PLAIN)

    def scores(importance: Importance, order: list[int]) -> Tensor:
        found: Tensor = importance(graph.get_pruning_group(network[0], tp.prune_conv_out_channels, order))
        return found

    assert same(scores(magnitude, [3, 2, 1, 0]), scores(magnitude, [0, 1, 2, 3]))
    still_a_fault(
        same(scores(taylor, [3, 2, 1, 0]), scores(taylor, [0, 1, 2, 3]).flip(0)),
        "Taylor scores the channels that it is asked for, in any order",
        "gradients.taylor",
    )


def test_fpgm_measures_distances_between_squares_of_weights() -> None:
    network = nn.Sequential(conv(3, 6), nn.ReLU(), conv(6, 4)).eval()
    example = torch.randn(2, 3, 6, 6)
    first = network[0].weight.detach().double().flatten(1)
    second = network[2].weight.detach().double().transpose(0, 1).flatten(1)
    published, of_squares = (
        (torch.cdist(a, a).sum(1) + torch.cdist(b, b).sum(1)) / 2
        for a, b in ((first, second), (first.square(), second.square()))
    )
    found = tp.importance.FPGMImportance(**PLAIN)(whole_group(network, example, "0"))
    still_a_fault(same(found, of_squares) and not same(found, published), "FPGM's distances are of weights", "fpgm")
    assert_proportional(ours(network, example, "fpgm")["0"][1], published)


def test_bn_scale_says_nothing_of_groups_without_batch_norms() -> None:
    """The pruner passes over them, and they stay dense; ours is a named error."""
    network = nn.Sequential(conv(3, 6), nn.ReLU(), conv(6, 4)).eval()
    found = tp.importance.BNScaleImportance(**PLAIN)(whole_group(network, torch.randn(2, 3, 6, 6), "0"))
    still_a_fault(found is None, "a group without BatchNorms is told", "bn-scale")


def test_what_is_reached_on_two_ways_counts_for_one() -> None:
    """A gate: channel i and i + 4 of a make channel i of c, whose weights are given to one of them."""
    network = Net(
        lambda n, x: (lambda y: n.c(y[0] * torch.sigmoid(y[1])))(n.a(x).chunk(2, 1)), a=conv(3, 8), c=conv(4, 2)
    ).eval()
    example = torch.randn(2, 3, 6, 6)
    producer, reader = (network.get_submodule(name).weight.double().square() for name in ("a", "c"))
    found = tp.importance.MagnitudeImportance(p=2, **PLAIN)(whole_group(network, example, "a"))
    one = (out(producer) + torch.cat([torch.zeros(4), into(reader)])) / 2
    still_a_fault(same(found, one), "both halves of a gate get the weights of its reader", REDUCE)
    halves = out(producer).view(2, 4).sum(0)
    assert_proportional(ours(network, example, "l2")["a"][1], halves + into(reader))
