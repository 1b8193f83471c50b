"""``pruneport.inspect``: the groups of a source, a bundle or a network in memory, by keyword arguments."""

from __future__ import annotations

import doctest
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pruneport
from pruneport.commands import InspectConfig, inspect
from pruneport.errors import InputError, ModelError, PruneportError, SourceError
from small_networks import same_state


def build() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 16, 3), nn.Flatten(), nn.Linear(256, 4))
    return nn.Sequential(*layers)


def test_the_example_in_its_docstring_runs() -> None:
    found = doctest.testmod(sys.modules[pruneport.inspect.__module__], globs={"pruneport": pruneport})
    assert (found.failed, found.attempted) == (0, 3)


def test_it_finds_what_the_command_finds(tmp_path: Path) -> None:
    given: dict[str, Any] = {"scope": "channels", "round_to": 4, "members": True}
    found = pruneport.inspect("pruneport:digits_resnet", keep="head", graph=str(tmp_path / "groups.svg"), **given)
    config = InspectConfig(source="pruneport:digits_resnet", keep=("head",), **given)
    assert found.to_dict() == inspect(config).to_dict()
    assert (tmp_path / "groups.svg").is_file()


def test_a_network_in_memory_is_looked_at_and_left_as_it_is() -> None:
    network = build().train()
    before = build()
    found = pruneport.inspect(network, input_shape=(1, 8, 8))
    assert same_state(network, before)
    assert network.training
    assert [(view.group.name, view.group.width, view.reason == "") for view in found.groups] == [
        ("0", 32, True),
        ("3", 16, False),
        ("5", 4, False),
    ]
    assert found.dense == pruneport.prune(network, macs=0.5, input_shape=(1, 8, 8), recover="none").plan.dense


@pytest.mark.slow
def test_its_sensitivity_is_measured_and_drawn(tmp_path: Path) -> None:
    network = build()
    network(torch.randn(64, 1, 8, 8))  # which gives the norm statistics to make inputs from
    found = pruneport.inspect(network, input_shape=(1, 8, 8), sensitivity=True, plot=tmp_path / "curves.svg")
    assert (tmp_path / "curves.svg").is_file()
    assert found.groups[0].curve is not None


@pytest.mark.parametrize(
    ("source", "given", "kind", "said"),
    [
        (build(), {}, ModelError, "the input shape of this Sequential is not known"),
        (build(), {"input_shape": (1, 8)}, ModelError, "expected three positive numbers"),
        (build(), {"input_shape": (3, 8, 8)}, ModelError, "refuses an input of shape"),
        (build(), {"input_shape": (1, 8, 8), "weights": "DEFAULT"}, SourceError, "`weights`: for a source"),
        (build(), {"input_shape": (1, 8, 8), "scope": "all"}, InputError, "expected one of filters, channels"),
        (7, {}, SourceError, "the source is a int"),
        ("nothing", {}, SourceError, "there is no bundle at nothing"),
    ],
)
def test_what_cannot_be_looked_at(source: Any, given: dict[str, Any], kind: type[PruneportError], said: str) -> None:
    with pytest.raises(kind, match=said):
        pruneport.inspect(source, **given)


def test_an_unknown_argument_is_named() -> None:
    with pytest.raises(TypeError, match=r"inspect takes no argument 'scop'.*scope"):
        pruneport.inspect("pruneport:digits_resnet", scop="channels")  # type: ignore[call-arg]
