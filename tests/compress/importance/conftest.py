"""A network that many criteria are tried on."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn


@pytest.fixture(scope="session")
def resnet() -> nn.Module:
    """ResNet-18 with 7 classes; no two gains of its BatchNorms are alike."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: nn.Module = torchvision.models.resnet18(num_classes=7).eval()
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.normal_(layer.weight)
    return network
