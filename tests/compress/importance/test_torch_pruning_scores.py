"""Importances of torch-pruning as criteria: asked for our groups, with the gradients that they document."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn import functional as F

from graph_cases import made
from pruneport.compress.activations.calibration import Calibration, in_memory
from pruneport.compress.assessment import assess
from pruneport.compress.graph.dependency.channel_graph import dependency_graph
from pruneport.compress.importance.criteria import CRITERIA, score_groups
from pruneport.compress.options import PruneOptions
from pruneport.compress.prune import prune
from pruneport.compress.records import Calibrated
from pruneport.errors import ImageFolderError, PruningError
from pruneport.models.record import Source
from small_networks import Net, conv, pooled

IMAGES = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(5))
CLASSES = torch.arange(12) % 4
SOURCE = Source(spec="tests:graph", model_args={}, seed=0, input_shape=(3, 8, 8))


def calibration() -> Calibration:
    return Calibration(
        batches=in_memory([IMAGES[:5], IMAGES[5:]]),
        labels=(CLASSES[:5], CLASSES[5:]),
        classes=4,
        record=Calibrated(inputs="images", count=12),
    )


def chain() -> nn.Module:
    torch.manual_seed(2)
    return Net(
        lambda n, x: n.fc(pooled(n.b(F.relu(n.a(x))))),
        a=conv(3, 6, bias=False),
        b=conv(6, 8, bias=False),
        fc=nn.Linear(8, 4),
    ).eval()


def scores_of(network: nn.Module, criterion: Any, name: str = "a") -> np.ndarray[Any, Any]:
    graph = dependency_graph(network, IMAGES[:1])
    free = [group.name == name for group in graph.groups]
    found = score_groups(network, graph.groups, free, criterion, 0, (3, 8, 8), calibration(), "folder", graph=graph)
    return found[free.index(True)]


def gradients(network: nn.Module, image: Tensor, wanted: Tensor) -> dict[str, Tensor]:
    """Of the mean loss over some images, in float64, by hand."""
    work = copy.deepcopy(network).double()
    F.cross_entropy(work(image.double()), wanted).backward()
    return {name: parameter.grad for name, parameter in work.named_parameters() if parameter.grad is not None}


def test_taylor_reads_the_mean_gradient_over_all_images() -> None:
    network = chain()
    found = scores_of(network, torch_pruning.importance.GroupTaylorImportance(normalizer=None))
    gradient = gradients(network, IMAGES, CLASSES)
    out = (network.a.weight.double() * gradient["a.weight"]).abs().sum((1, 2, 3))
    into = (network.b.weight.double() * gradient["b.weight"]).abs().sum((0, 2, 3))
    np.testing.assert_allclose(found, ((out + into) / 2).detach(), rtol=1e-4)


def test_hessian_reads_the_mean_of_every_images_squared_gradient() -> None:
    network = chain()
    found = scores_of(network, "torch_pruning:GroupHessianImportance")
    squares = [gradients(network, IMAGES[i : i + 1], CLASSES[i : i + 1]) for i in range(len(IMAGES))]
    mean = {name: torch.stack([one[name].square() for one in squares]).mean(0) for name in squares[0]}
    out = (network.a.weight.double().square() * mean["a.weight"]).sum((1, 2, 3))
    into = (network.b.weight.double().square() * mean["b.weight"]).sum((0, 2, 3))
    expected = (out + into).detach()
    np.testing.assert_allclose(found, expected / expected.mean(), rtol=1e-3)


@pytest.mark.parametrize("name", ["shuffle", "concat", "attention", "grouped"])
def test_every_unit_has_the_mean_of_what_its_channels_have(name: str) -> None:
    """Magnitudes, added up over layers by hand, whatever the order in which a layer holds the units."""
    network = made(name)
    graph = dependency_graph(network, IMAGES[:1])
    importance = torch_pruning.importance.GroupMagnitudeImportance(
        p=1, normalizer=None, group_reduction="sum", target_types=[nn.Linear]
    )
    group = next(g for g in graph.groups if "fc" in g.consumers)
    free = [other is group for other in graph.groups]
    found = score_groups(network, graph.groups, free, importance, 0, (3, 8, 8), graph=graph)[free.index(True)]
    expected = np.zeros(group.width)
    layers = dict(network.named_modules())
    for member in group.members:
        layer = layers.get(member.module)
        if isinstance(layer, nn.Linear):
            weight = layer.weight.detach().abs()
            sums = weight.sum(1 if member.axis == "out" else 0).double().numpy()
            expected += sums[member.positions].sum(1)
    np.testing.assert_allclose(found / found.sum(), expected / expected.sum(), rtol=1e-5)


def test_an_object_is_a_criterion_and_the_plan_names_it() -> None:
    class Own(torch_pruning.importance.GroupMagnitudeImportance):
        pass

    for criterion, name in (
        (torch_pruning.importance.LAMPImportance(), "torch_pruning:LAMPImportance"),
        (Own(), f"{__name__}:{Own.__qualname__}"),
        ("torch_pruning:RandomImportance", "torch_pruning:RandomImportance"),
    ):
        options = PruneOptions(ratio=0.5, criterion=criterion, round_to=1)
        pruned = prune(chain(), SOURCE, options)
        assert pruned.plan.request.criterion == name
        assert pruned.network.a.out_channels == 3
        assert pruned.plan.masked_error is not None
        assert pruned.plan.masked_error < 1e-5


def test_criteria_of_gradients_need_images_and_leave_the_network_as_it_was() -> None:
    options = PruneOptions(ratio=0.5, criterion="torch_pruning:GroupTaylorImportance", round_to=1)
    network = chain()
    with pytest.raises(ImageFolderError, match="GroupTaylorImportance` needs images"):
        assess(network, SOURCE, options)
    assess(network, SOURCE, replace(options, ranking="uniform"), calibration(), "folder")
    assert all(parameter.grad is None for parameter in network.parameters())


def test_scores_that_are_none_or_not_one_a_channel_are_named() -> None:
    network = chain()
    for importance, said in (
        (torch_pruning.importance.BNScaleImportance(), "BNScaleImportance has no scores for a: it reads no layer"),
        (lambda group: torch.ones(3), r"shape \(3,\) for a; expected \(6,\)"),
    ):
        with pytest.raises(PruningError, match=said):
            scores_of(network, importance)


def test_the_command_line_offers_all_that_score_by_weights_or_gradients() -> None:
    offered = {name.partition(":")[2] for name in CRITERIA if name.startswith("torch_pruning:")}
    aliases = {"MagnitudeImportance", "TaylorImportance", "HessianImportance"}
    theirs = {name for name in vars(torch_pruning.importance) if name.endswith("Importance") and name != "Importance"}
    assert theirs - aliases - offered == {"ActivationImportance", "OBDCImportance"}
