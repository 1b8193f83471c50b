"""Criteria: each against its formula computed another way."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pruneport.compress.activations.calibration import Calibration, in_memory
from pruneport.compress.graph.dependency.channel_graph import dependency_graph
from pruneport.compress.graph.groups import Group, find_groups
from pruneport.compress.importance.criteria import CRITERIA, resolve_auto, score_groups, wants_inputs
from pruneport.compress.importance.gradients import labels_for
from pruneport.compress.options import PruneOptions
from pruneport.compress.records import Calibrated
from pruneport.compress.resize.layers import weight_by_channel
from pruneport.errors import ImageFolderError, PruningError

SHAPE = (3, 32, 32)


def test_scores_of_a_flattened_group_by_hand() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)).eval()
    group = next(g for g in find_groups(network, torch.randn(1, 3, 8, 8)) if g.name == "0")
    first, second = network[0].weight.detach(), network[3].weight.detach()
    expected = [(first[unit].abs().sum() + second[:, 36 * unit : 36 * unit + 36].abs().sum()) / 2 for unit in range(4)]
    wanted = torch.stack(expected).double().numpy()
    found = score_groups(network, [group], [True], "l1", 0, (3, 8, 8))[0]
    np.testing.assert_allclose(found, wanted / wanted.mean(), rtol=1e-5)


def test_weights_of_grouped_convolutions_by_input() -> None:
    network = nn.Sequential(nn.Conv2d(6, 8, 3, groups=2))
    found = weight_by_channel(network, "0", "in")
    assert found is not None
    weight = network[0].weight.detach()
    for channel in range(6):
        rows = weight[:4] if channel < 3 else weight[4:]
        assert found[channel].abs().sum().item() == pytest.approx(rows[:, channel % 3].abs().sum().item(), rel=1e-5)


@pytest.mark.parametrize("criterion", sorted(CRITERIA))
def test_every_criterion_scores_every_unit_and_leaves_the_network(
    criterion: str, random_network: Callable[..., nn.Module]
) -> None:
    network = random_network(11)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    before = torch.get_rng_state()
    graph = dependency_graph(network, torch.randn(1, 3, 8, 8))
    groups = graph.groups
    torch.set_rng_state(before)
    free = [index % 2 == 0 and "1" in group.name for index, group in enumerate(groups)]
    if criterion in ("bn-scale", "torch_pruning:BNScaleImportance"):
        free = [
            is_free and any("channels" in m.axis for m in g.members) for g, is_free in zip(groups, free, strict=True)
        ]
    scores = score_groups(network, groups, free, criterion, 3, (3, 8, 8), calibration(), graph=graph)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())
    assert any(free)
    for group, score, is_free in zip(groups, scores, free, strict=True):
        assert score.shape == (group.width,)
        assert np.isfinite(score).all()
        assert is_free or (score == 1).all()
        assert not is_free or group.width == 1 or score.std() > 0
        assert not is_free or CRITERIA[criterion].comparable or np.abs(score).mean() == pytest.approx(1)


def calibration(images: int = 24, classes: int = 5, labelled: bool = True) -> Calibration:
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(images, 3, 8, 8, generator=generator).split(10)
    labels = torch.randint(0, classes, (images,), generator=generator).split(10)
    return Calibration(
        batches=in_memory(inputs),
        labels=labels if labelled else None,
        classes=classes if labelled else 0,
        record=Calibrated(inputs="images", count=images),
    )


def test_random_scores_follow_the_seed(random_network: Callable[..., nn.Module]) -> None:
    network = random_network(5)
    groups = find_groups(network, torch.randn(1, 3, 8, 8))

    def scores(seed: int) -> np.ndarray:
        return np.concatenate(score_groups(network, groups, [True] * len(groups), "random", seed, (3, 8, 8)))

    assert np.array_equal(scores(1), scores(1))
    assert not np.array_equal(scores(1), scores(2))


def test_weights_that_are_all_zero_score_one() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3)).eval()
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    groups = find_groups(network, torch.randn(1, 3, 8, 8))
    for score in score_groups(network, groups, [True] * len(groups), "l1", 0, (3, 8, 8)):
        assert (score == 1).all()


# A small chain whose scores can be computed another way


def chain() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        network = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(6, 7, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(7, 5),
        )
    return network.eval()


def scored(network: nn.Module, criterion: str, given: Calibration | None = None) -> tuple[Group, np.ndarray]:
    """The group between the two convolutions, and its scores up to a factor."""
    group = next(g for g in find_groups(network, torch.randn(1, 3, 8, 8)) if g.name == "0")
    return group, score_groups(network, [group], [True], criterion, 0, (3, 8, 8), given or calibration())[0]


def same_up_to_a_factor(found: np.ndarray, wanted: Tensor, rtol: float = 1e-4) -> None:
    expected = wanted.double().numpy()
    np.testing.assert_allclose(found / np.abs(found).sum(), expected / np.abs(expected).sum(), rtol=rtol, atol=1e-7)


def both_sides(first: Tensor, second: Tensor) -> Tensor:
    """Sum a weight's numbers by unit: outputs of the first layer and inputs of the second, then their mean."""
    return (first.double().flatten(1).sum(1) + second.double().transpose(0, 1).flatten(1).sum(1)) / 2


def loss_of(network: nn.Module, given: Calibration) -> Tensor:
    """Mean cross-entropy over all images at once."""
    assert given.labels is not None
    inputs = torch.cat([load() for load in given.batches]).to(next(network.parameters()).dtype)
    return nn.functional.cross_entropy(network(inputs), torch.cat(given.labels))


def gradients_of(network: nn.Module, given: Calibration) -> tuple[Tensor, Tensor]:
    first, second = torch.autograd.grad(loss_of(network, given), [network[0].weight, network[2].weight])  # type: ignore[index]
    return first, second


def test_lamp_by_hand() -> None:
    network = chain()
    first = network[0].weight.detach().flatten(1).double().square().sum(1)
    second = network[2].weight.detach().transpose(0, 1).flatten(1).double().square().sum(1)
    both = (first + second) / 2
    wanted = torch.stack([unit / both[both >= unit].sum() for unit in both])
    _, found = scored(network, "lamp")
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-6)


def test_fpgm_by_hand() -> None:
    network = chain()
    sides = (network[0].weight.detach().flatten(1), network[2].weight.detach().transpose(0, 1).flatten(1))
    wanted = torch.stack([sum((side[u] - side).norm(dim=1).sum() for side in sides) / 2 for u in range(6)])
    same_up_to_a_factor(scored(network, "fpgm")[1], wanted)


def test_bn_scale_is_gamma_and_names_a_group_without(resnet: nn.Module) -> None:
    groups = find_groups(resnet, torch.randn(1, *SHAPE))
    index = next(i for i, group in enumerate(groups) if group.name == "layer1.0.conv1")
    free = [number == index for number in range(len(groups))]
    found = score_groups(resnet, groups, free, "bn-scale", 0, SHAPE)[index]
    gamma = resnet.get_submodule("layer1.0.bn1").weight
    np.testing.assert_allclose(found, gamma.detach().abs().numpy(), rtol=1e-6)
    with pytest.raises(
        PruningError, match="`criterion=bn-scale` needs a BatchNorm with weights in every group; 0 has none"
    ):
        scored(chain(), "bn-scale")


def test_synflow_conserves_the_flow_from_layer_to_layer() -> None:
    """Its published property: without biases, the scores of each layer's units sum to the same total flow."""
    network = chain()
    for layer in network:
        if getattr(layer, "bias", None) is not None:
            nn.init.zeros_(layer.bias)
    _, found = scored(network, "synflow")
    positive = copy.deepcopy(network).double()
    for parameter in positive.parameters():
        parameter.data.abs_()
    with torch.no_grad():
        flow = positive(torch.ones(1, 3, 8, 8, dtype=torch.float64)).sum().item()
    assert found.sum() == pytest.approx(flow, rel=1e-9)


def test_snip_by_hand() -> None:
    network, given = chain(), calibration()
    first, second = gradients_of(network, given)
    wanted = both_sides((network[0].weight * first).abs().detach(), (network[2].weight * second).abs().detach())
    same_up_to_a_factor(scored(network, "snip")[1], wanted)


def test_taylor_is_the_squared_change_of_the_loss_to_first_order() -> None:
    """On one batch: against the loss of networks whose unit is turned down by a thousandth, in float64."""
    network = chain().double()
    images = calibration(images=10)
    wanted = []
    for unit in range(6):
        changes = []
        for layer, rows in ((0, (unit,)), (2, (slice(None), unit))):
            losses = []
            for scale in (1 - 1e-4, 1 + 1e-4):
                changed = copy.deepcopy(network)
                changed[layer].weight.data[rows] *= scale
                losses.append(loss_of(changed, images).item())
            changes.append((losses[1] - losses[0]) / 2e-4)
        wanted.append((sum(changes) / 2) ** 2)
    _, found = scored(chain(), "taylor", images)
    same_up_to_a_factor(found, torch.tensor(wanted), rtol=2e-3)


def test_fisher_is_the_mean_squared_gradient_of_single_images() -> None:
    network, given = chain(), calibration()
    assert given.labels is not None
    inputs, labels = torch.cat([load() for load in given.batches]), torch.cat(given.labels)
    squares = [torch.zeros_like(network[0].weight), torch.zeros_like(network[2].weight)]
    for image, label in zip(inputs, labels, strict=True):
        loss = nn.functional.cross_entropy(network(image[None]), label[None])
        for total, gradient in zip(
            squares, torch.autograd.grad(loss, [network[0].weight, network[2].weight]), strict=True
        ):
            total += gradient.square() / len(inputs)
    weights = (network[0].weight.detach(), network[2].weight.detach())
    wanted = both_sides(*(w.square() * s / 2 for w, s in zip(weights, squares, strict=True)))
    _, found = scored(network, "fisher")
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-4)


def test_grasp_is_the_weight_times_a_finite_difference_of_gradients() -> None:
    network, given = chain().double(), calibration()
    parameters = list(network.parameters())
    mean = torch.autograd.grad(loss_of(network, given), parameters)
    sides = []
    for step in (1e-5, -1e-5):
        moved = copy.deepcopy(network)
        for parameter, gradient in zip(moved.parameters(), mean, strict=True):
            parameter.data += step * gradient
        sides.append(gradients_of(moved, given))
    products = [(ahead - behind) / 2e-5 for ahead, behind in zip(*sides, strict=True)]
    wanted = both_sides(network[0].weight.detach() * products[0], network[2].weight.detach() * products[1])
    _, found = scored(chain(), "grasp")
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-3, atol=1e-6)


def test_activation_is_the_mean_of_what_consumers_read() -> None:
    network, given = chain(), calibration()
    with torch.inference_mode():
        read = [network[1](network[0](load())).abs().mean((0, 2, 3)) for load in given.batches]
    same_up_to_a_factor(scored(network, "activation")[1], torch.stack(read).mean(0))


def test_block_hessian_removes_what_least_squares_misses_least() -> None:
    """Against numpy: the error of the second convolution, refitted on the units that are left.

    A ridge is equations more, one for each input: it may differ by a deviation, which counts as six equations an input.
    """
    network, given = chain(), calibration(images=70)
    with torch.inference_mode():
        hidden = network[1](network[0](torch.cat([load() for load in given.batches])))
    rows = nn.functional.unfold(hidden, 3, padding=1).transpose(1, 2).flatten(0, 1).double()
    rows = (rows - rows.mean(0)).numpy()
    weight = network[2].weight.detach().flatten(1).T.double().numpy()
    variance, count = np.square(rows @ weight).mean(), len(rows)
    rows = np.vstack([rows, np.diag(rows.std(0) * np.sqrt(6 * rows.shape[1]))])
    targets = rows @ weight

    def error(removed: list[int]) -> float:
        left = [9 * unit + place for unit in range(6) if unit not in removed for place in range(9)]
        fitted = np.linalg.lstsq(rows[:, left], targets, rcond=None)[0] if left else np.zeros((0, 7))
        return float(np.square(rows[:, left] @ fitted - targets).sum() / count / variance)

    _, found = scored(network, "block-hessian", given)
    removed: list[int] = []
    for unit in np.argsort(found):
        assert unit == min(set(range(6)) - set(removed), key=lambda u: error([*removed, u]))
        removed.append(int(unit))
        assert found[unit] == pytest.approx(error(removed), rel=1e-3)


# Labels


def test_labels_come_from_the_folder_or_from_the_network() -> None:
    network = chain()
    given, plain = calibration(), calibration(labelled=False)
    own = [network(load()).argmax(1) for load in given.batches]
    assert given.labels is not None
    for wanted, expected, images in (
        ("auto", given.labels, given),
        ("folder", given.labels, given),
        ("predicted", own, given),
        ("auto", own, plain),
    ):
        found = labels_for(network, images, wanted)
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    with pytest.raises(ImageFolderError, match=r"no class folders\. Use `calibration_labels=predicted`"):
        labels_for(network, plain, "folder")
    with pytest.raises(ImageFolderError, match=r"4 classes, the network's head 5; .* `calibration_labels=predicted`"):
        labels_for(network, calibration(classes=4), "auto")


@pytest.mark.parametrize("criterion", ["taylor", "snip", "grasp", "fisher"])
def test_images_without_labels_are_enough_for_a_loss(criterion: str) -> None:
    plain, network = calibration(labelled=False), chain()
    own = tuple(network(load()).argmax(1).detach() for load in plain.batches)
    labelled = Calibration(batches=plain.batches, labels=own, classes=5, record=plain.record)
    _, found = scored(network, criterion, plain)
    np.testing.assert_allclose(found, scored(network, criterion, labelled)[1], rtol=1e-6)


def test_gradients_that_overflow_are_named() -> None:
    network = chain()
    network[0].weight.data *= 1e30
    network[2].weight.data *= 1e30
    with pytest.raises(PruningError, match=r"the gradient at .* is not finite"):
        scored(network, "snip")


def test_which_criteria_need_images() -> None:
    assert not wants_inputs(PruneOptions(criterion="synflow"), calibrated=False)
    assert wants_inputs(PruneOptions(criterion="block-hessian"), calibrated=False)
    assert wants_inputs(PruneOptions(ranking="sensitivity"), calibrated=False)
    with pytest.raises(ImageFolderError, match="`criterion=fisher` needs images: give `calibration=FOLDER`"):
        wants_inputs(PruneOptions(criterion="fisher"), calibrated=False)


def test_auto_is_the_best_that_the_inputs_allow() -> None:
    without, given = resolve_auto(PruneOptions(), calibrated=False), resolve_auto(PruneOptions(), calibrated=True)
    assert (without.criterion, without.ranking) == ("l1", "uniform")
    assert (given.criterion, given.ranking) == ("block-hessian", "sensitivity")
    asked = PruneOptions(criterion="l2", ranking="global")
    assert resolve_auto(asked, calibrated=True) == asked
    assert not wants_inputs(PruneOptions(), calibrated=False)
    assert resolve_auto(PruneOptions(depth="auto"), calibrated=False).ranking == "sensitivity"
    assert wants_inputs(PruneOptions(depth="auto"), calibrated=False)
