"""Where torch-pruning's own graph is right, ours is the same: layer by layer, index by index."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torch_pruning
import torchvision
from torch import nn

from graph_cases import X, made
from pruneport.compress.graph.dependency.channel_graph import dependency_graph

Links = dict[tuple[str, str], set[tuple[int, int]]]
"""Layer and side -> positions there, each with the position of the first layer that it goes with."""

NETWORKS = """
resnet18 resnet50 vgg11_bn alexnet squeezenet1_1 densenet121 googlenet inception_v3 mobilenet_v2 mobilenet_v3_small
mnasnet0_5 efficientnet_b0 regnet_x_400mf convnext_tiny fcn_resnet50 lraspp_mobilenet_v3_large timm:resnet26d
timm:ghostnet_050 timm:poolformer_s12 timm:vgg13_bn
"""
_ON_TWO_WAYS = {"timm:ghostnet_050"}  # some positions are reached on two ways, of which theirs counts the last


def links_of(graph: Any, names: dict[nn.Module, str], layer: Any) -> Links:
    """All that goes with each output of a layer."""
    function = graph.get_pruner_of_module(layer).prune_out_channels
    outputs = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    found: Links = {}
    for item in graph.get_pruning_group(layer, function, list(range(outputs))).items:
        if item.dep.target.module in names and not isinstance(item.dep.target.module, nn.PReLU):
            side = "out" if graph.is_out_channel_pruning_fn(item.dep.handler) else "in"
            pairs = found.setdefault((names[item.dep.target.module], side), set())
            pairs.update(zip(item.idxs, item.root_idxs, strict=True))
    return found


def check_agreement(network: nn.Module, example: torch.Tensor, exactly: bool = True) -> int:
    """Compare the two graphs at every layer; return how many there were."""
    names = {module: name for name, module in network.named_modules()}
    theirs = torch_pruning.DependencyGraph().build_dependency(network, example, verbose=False)
    ours = dependency_graph(network, example)
    layers = [layer for layer in theirs.module2node if isinstance(layer, nn.modules.conv._ConvNd | nn.Linear)]
    for layer in layers:
        expected, found = links_of(theirs, names, layer), links_of(ours, names, layer)
        if not exactly:
            expected, found = (
                {key: {(position, 0) for position, _ in pairs} for key, pairs in links.items()}
                for links in (expected, found)
            )
        assert found == expected, names[layer]
    return len(layers)


@pytest.mark.parametrize("name", ["residual", "concat"])
def test_small_networks(name: str) -> None:
    assert check_agreement(made(name), X) >= 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
@pytest.mark.parametrize("name", NETWORKS.split())
def test_networks_on_which_both_are_right(name: str) -> None:
    torch.manual_seed(0)
    library, _, own = name.rpartition(":")
    options: dict[str, Any] = {"weights": None, "weights_backbone": None}
    if library:
        network = timm.create_model(own)
    else:
        network = torchvision.models.get_model(own, **(options if "_resnet" in own or "lraspp" in own else {}))
    size = 96 if own == "inception_v3" else 64
    assert check_agreement(network.eval(), torch.randn(1, 3, size, size), name not in _ON_TWO_WAYS) >= 8
