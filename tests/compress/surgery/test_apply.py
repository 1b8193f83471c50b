"""Plans on the wrong network are refused with what is wrong."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from plan_content import first_pruned
from torch import nn

from pruneport.compress.surgery.apply import apply_plan
from pruneport.compress.surgery.plan import Plan, parse_plan
from pruneport.errors import BundleError
from pruneport.models.digits.network import digits_resnet


def test_another_architecture(plan: Plan) -> None:
    with pytest.raises(BundleError, match=r"does not fit the network at blocks\.0\.\S+: .*no such layer.* the factory"):
        apply_plan(nn.Sequential(nn.Conv2d(1, 32, 3)).eval(), plan.groups)


@pytest.mark.parametrize("width", [16, 48])
def test_another_width(width: int, plan: Plan) -> None:
    network = digits_resnet()
    block = network.blocks[0]
    block.conv1, block.norm1 = nn.Conv2d(32, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
    block.conv2 = nn.Conv2d(width, 32, 3, padding=1, bias=False)
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    with pytest.raises(BundleError, match=rf"does not fit the network at blocks\.0\.\S+: .*32 channels.* with {width}"):
        apply_plan(network, plan.groups)
    assert {key: value.shape for key, value in network.state_dict().items()} == shapes, "it was half shrunk"


def test_a_network_that_is_already_pruned(plan: Plan) -> None:
    network = digits_resnet()
    apply_plan(network, plan.groups)
    with pytest.raises(BundleError, match="does not fit the network"):
        apply_plan(network, plan.groups)


@pytest.mark.parametrize(
    ("layer", "axis"), [("blocks.0.conv1", "channels"), ("blocks.0.norm1", "in"), ("blocks.0", "out"), ("", "in")]
)
def test_an_axis_that_the_layer_has_not(layer: str, axis: str, content: dict[str, Any]) -> None:
    group = first_pruned(content)
    group["members"].append({"module": layer, "axis": axis, "size": 32, "start": 0, "run": 1})
    with pytest.raises(BundleError, match=f"does not fit the network at {layer}"):
        apply_plan(digits_resnet(), parse_plan(json.dumps(content)).groups)


def test_a_changed_layer_type(plan: Plan) -> None:
    network = digits_resnet()
    network.blocks[0].norm1 = nn.Identity()
    with pytest.raises(BundleError, match=r"at blocks\.0\.norm1: .*a Identity with 0 there"):
        apply_plan(network, plan.groups)


def test_a_plan_that_keeps_everything_changes_nothing(content: dict[str, Any]) -> None:
    for group in content["groups"]:
        group["kept"] = None
    network = digits_resnet()
    before = copy.deepcopy(network.state_dict())
    apply_plan(network, parse_plan(json.dumps(content)).groups)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("value", [33, 0, -1, 10**12, True, (32,)])
def test_no_attribute_grows(value: Any) -> None:
    network = nn.Sequential(nn.Conv2d(3, 32, 1))
    with pytest.raises(BundleError, match=r"it sets 0\.out_channels to .*, which there is 32"):
        apply_plan(network, (), {"0": {"out_channels": value}})
    apply_plan(network, (), {"0": {"out_channels": 16}})
    assert network[0].out_channels == 16
