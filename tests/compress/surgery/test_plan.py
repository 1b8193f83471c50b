"""plan.json: damaged, edited or misapplied plans are refused with what is wrong."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from pruneport.compress.options import PruneOptions
from pruneport.compress.prune import prune
from pruneport.compress.records import Recovered
from pruneport.compress.surgery.plan import FORMAT_VERSION, Plan, apply_plan, parse_plan
from pruneport.compress.surgery.plan_schema import dense_elements
from pruneport.errors import BundleError
from pruneport.models.digits.network import digits_resnet
from pruneport.models.record import Source

SOURCE = Source(spec="pruneport:digits_resnet", model_args={"num_classes": 10}, input_shape=(1, 8, 8))


@pytest.fixture(scope="module")
def plan() -> Plan:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return prune(digits_resnet().eval(), SOURCE, PruneOptions(ratio=0.5, keep=("head",))).plan


@pytest.fixture
def content(plan: Plan) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(plan.to_json())
    return loaded


_LATER_REQUESTS = ("attention", "prune_representation")


def first_pruned(content: dict[str, Any]) -> dict[str, Any]:
    group: dict[str, Any] = next(group for group in content["groups"] if group["kept"] is not None)
    return group


def test_the_file_says_what_a_reader_needs(content: dict[str, Any]) -> None:
    assert content["format_version"] == FORMAT_VERSION == 2
    assert content["source"]["spec"] == "pruneport:digits_resnet"
    assert content["source"]["trained"] is False
    assert content["source"]["input_shape"] == [1, 8, 8]
    assert content["request"]["keep"] == ["head"]
    group = first_pruned(content)
    assert group["name"] == "blocks.0.conv1"
    assert group["width"] == 32
    assert len(group["kept"]) == 16
    assert {"module": "blocks.0.conv1", "axis": "out", "size": 32, "start": 0, "run": 1} in group["members"]


def test_the_shares_kept_are_of_what_was_counted(plan: Plan, content: dict[str, Any]) -> None:
    assert 0 < plan.macs_kept == content["pruned"]["macs"] / content["dense"]["macs"] < 1
    assert 0 < plan.params_kept == content["pruned"]["params"] / content["dense"]["params"] < 1
    assert plan.macs_kept != plan.params_kept


@pytest.mark.parametrize("text", ["", "not JSON", "[]", "3", "{}", '{"format": 1}', "null"])
def test_what_is_no_plan(text: str) -> None:
    with pytest.raises(
        BundleError, match=r"plan\.json is not a well-formed plan: .*(JSON|format_version).* Compress again\."
    ):
        parse_plan(text)


@pytest.mark.parametrize("version", [3, 99, "1", None])
def test_other_formats(version: Any, content: dict[str, Any]) -> None:
    content["format_version"] = version
    with pytest.raises(BundleError, match=rf"has format {version}; this pruneport reads formats 1 to 2\. Upgrade with"):
        parse_plan(json.dumps(content))


@pytest.mark.parametrize(
    "key", ["source", "request", "dense", "pruned", "groups", "libraries", "created", "note", "masked_error"]
)
def test_missing_keys(key: str, content: dict[str, Any]) -> None:
    del content[key]
    with pytest.raises(
        BundleError, match=rf"not a well-formed plan: .*missing required field `{key}`\. Compress again"
    ):
        parse_plan(json.dumps(content))


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["source"].pop("spec"),
        lambda content: content["source"].update(run="rm"),
        lambda content: content["request"].pop("criterion"),
        lambda content: content.update(dense=[1, 2]),
        lambda content: content.update(groups=3),
        lambda content: content.update(groups=["a"]),
        lambda content: content.update(source=None),
        lambda content: first_pruned(content).pop("members"),
        lambda content: first_pruned(content).update(width="many"),
        lambda content: first_pruned(content)["members"][0].pop("size"),
        lambda content: first_pruned(content)["members"][0].pop("run"),
        lambda content: first_pruned(content)["members"][0].update(positions=[[1], [2, 3]]),
        lambda content: first_pruned(content)["members"][0].update(positions=[[]] * 32),
    ],
)
def test_keys_of_the_wrong_kind(change: Callable[[dict[str, Any]], Any], content: dict[str, Any]) -> None:
    change(content)
    with pytest.raises(BundleError, match=r"plan\.json"):
        parse_plan(json.dumps(content))


@pytest.mark.parametrize("kept", [[], [0, 32], [-1, 3], [3, 1], [1, 1, 2]])
def test_kept_indices_that_are_none(kept: list[Any], content: dict[str, Any]) -> None:
    first_pruned(content)["kept"] = kept
    with pytest.raises(BundleError, match=r"kept indices of group blocks\.0\.conv1 are not ascending .* from 0 to 31"):
        parse_plan(json.dumps(content))


@pytest.mark.parametrize(
    "change",
    [
        {"start": 1},
        {"run": 2},
        {"size": 31},
        {"positions": [[unit] for unit in range(31)]},
        {"positions": [[unit] for unit in range(1, 33)]},
        {"positions": [[unit - 1] for unit in range(32)]},
    ],
)
def test_positions_out_of_range(change: dict[str, Any], content: dict[str, Any]) -> None:
    first_pruned(content)["members"][0].update(change)
    with pytest.raises(BundleError, match=r"group blocks\.0\.conv1 names positions outside the \d+ of blocks\.0\."):
        parse_plan(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"positions": list(range(32))}, r"members\[0\]\.positions\[0\]"),
        ({"start": -1}, r"members\[0\]\.start"),
        ({"run": 1.0}, r"members\[0\]\.run"),
        ({"size": True}, r"members\[0\]\.size"),
        ({"axis": "depth"}, r"members\[0\]\.axis"),
        ({"axis": None}, r"members\[0\]\.axis"),
        ({"more": 1}, r"unknown field `more` - at `groups\[\d\]\.members\[0\]"),
    ],
)
def test_the_place_of_a_fault_is_named(change: dict[str, Any], place: str, content: dict[str, Any]) -> None:
    first_pruned(content)["members"][0].update(change)
    with pytest.raises(BundleError, match=place):
        parse_plan(json.dumps(content))


@pytest.mark.parametrize("kept", [[0.5, 2], [True, 2], ["1"], [2, None]])
def test_kept_indices_of_another_type(kept: list[Any], content: dict[str, Any]) -> None:
    first_pruned(content)["kept"] = kept
    with pytest.raises(BundleError, match=r"Expected `int`, got .* at `groups\[\d\]\.kept\[\d\]"):
        parse_plan(json.dumps(content))


def test_positions_named_twice(content: dict[str, Any]) -> None:
    first_pruned(content)["members"][0]["positions"] = [[0], [0], *([unit] for unit in range(2, 32))]
    with pytest.raises(BundleError, match=r"names a position of blocks\.0\.\S+ twice"):
        parse_plan(json.dumps(content))


# On the wrong network


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


def test_the_first_plans_are_read(content: dict[str, Any]) -> None:
    later = ("attributes", "sizes", "calibration", "recovery", "training")
    first = {key: value for key, value in content.items() if key not in later} | {"format_version": 1}
    first["request"] = {key: value for key, value in first["request"].items() if key not in _LATER_REQUESTS}
    del first["source"]["heads"]
    read = parse_plan(json.dumps(first, indent=1))
    network = digits_resnet()
    apply_plan(network, read.groups, read.attributes, read.sizes)
    assert read.sizes is None
    assert sum(parameter.numel() for parameter in network.parameters()) == content["pruned"]["params"]


def test_output_layers_stand_under_the_key_of_earlier_plans(content: dict[str, Any]) -> None:
    content["source"]["heads"] = {"head": 10}
    read = parse_plan(json.dumps(content))
    assert read.source.output_layers == {"head": 10}
    written = json.loads(read.to_json())["source"]
    assert (written["heads"], "output_layers" in written) == ({"head": 10}, False)


def test_positions_are_bounded_by_the_weights(content: dict[str, Any]) -> None:
    group = first_pruned(content)
    group["width"] = 2**20
    for member in group["members"]:
        member["size"] = 2**20
    assert parse_plan(json.dumps(content))
    with pytest.raises(BundleError, match=r"its groups name \d+ positions, most of them blocks\.0\.conv1; expected at"):
        parse_plan(json.dumps(content), {"blocks.0.conv1.weight": (16, 32, 3, 3)})


def test_numbers_of_the_dense_network_are_counted_from_the_pruned_ones(plan: Plan) -> None:
    dense = digits_resnet()
    network = copy.deepcopy(dense)
    apply_plan(network, plan.groups)
    wanted = sum(tensor.numel() for tensor in dense.state_dict().values())
    counted = dense_elements(plan.groups, {name: tensor.shape for name, tensor in network.state_dict().items()})
    assert wanted <= counted < 1.1 * wanted


@pytest.mark.parametrize("value", [33, 0, -1, 10**12, True, (32,)])
def test_no_attribute_grows(value: Any) -> None:
    network = nn.Sequential(nn.Conv2d(3, 32, 1))
    with pytest.raises(BundleError, match=r"it sets 0\.out_channels to .*, which there is 32"):
        apply_plan(network, (), {"0": {"out_channels": value}})
    apply_plan(network, (), {"0": {"out_channels": 16}})
    assert network[0].out_channels == 16


def test_recoveries_from_before_inputs_were_held_out_are_read(content: dict[str, Any]) -> None:
    content["recovery"] = {"name": "bn", "images": 7, "error_before": 0.5, "error_after": 0.25}
    done = parse_plan(json.dumps(content)).recovery
    assert done == Recovered(name="bn", images=7, error_before=0.5, error_after=0.25)
    assert done is not None
    assert (done.heldout, done.heldout_error_after, done.heldout_agreement) == (0, None, None)
    content["recovery"] |= {"heldout": 3, "heldout_error_before": 0.9, "heldout_error_after": 0.75}
    read = parse_plan(json.dumps(content))
    assert parse_plan(read.to_json()).recovery == read.recovery
    assert read.recovery is not None
    assert read.recovery.heldout_error_after == 0.75
