"""plan.json: damaged or edited plans are refused with what is wrong."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
from plan_content import first_pruned

from pruneport.compress.records import Imitated, Recovered
from pruneport.compress.surgery.apply import apply_plan
from pruneport.compress.surgery.plan import FORMAT_VERSION, Plan, parse_plan
from pruneport.compress.surgery.plan_bounds import dense_elements
from pruneport.errors import BundleError
from pruneport.models.digits.network import digits_resnet

_LATER_REQUESTS = ("attention", "prune_representation")


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
    assert "imitation" not in json.loads(read.to_json())["recovery"]  # earlier versions read it then


def test_what_an_imitation_did_is_read_again(content: dict[str, Any]) -> None:
    did = Imitated(
        steps=9,
        planned=12,
        learning_rate=0.001,
        tuning=4,
        features=None,
        distance_before=0.5,
        distance_after=0.25,
        stopped="no gain",
        kept="imitation",
    )
    done = Recovered(name="imitate", images=40, error_before=0.5, error_after=0.25, imitation=did)
    content["recovery"] = asdict(done)
    read = parse_plan(json.dumps(content))
    assert read.recovery == parse_plan(read.to_json()).recovery == done
    content["recovery"]["imitation"]["speed"] = 1
    with pytest.raises(BundleError, match=r"recovery\.imitation\.speed are not known"):
        parse_plan(json.dumps(content))
