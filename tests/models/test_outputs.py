"""What networks return: every tensor by its name, and nothing lost on the way."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from pruneport.errors import ModelError
from pruneport.models.outputs import TensorsOnly, main_output, read_outputs, takes_several, tensor_leaves

ONE, TWO, THREE = torch.ones(1), torch.ones(2), torch.ones(3)


@dataclasses.dataclass
class Scores:
    logits: Tensor
    count: int
    more: Any = None


class Pair(NamedTuple):
    boxes: Tensor
    labels: Any


class LikeTransformers(OrderedDict[str, Any]):
    """A mapping that is a dataclass too, and leaves out the fields that are None."""

    logits: Any = None
    hidden: Any = None


LikeTransformers = dataclasses.dataclass(LikeTransformers)  # type: ignore[misc]


def like_transformers() -> Any:
    made = LikeTransformers()
    made["logits"] = ONE
    return made


@pytest.mark.parametrize(
    ("value", "names", "others"),
    [
        (ONE, ["output"], {}),
        ((ONE, TWO), ["output.0", "output.1"], {}),
        ([ONE, (TWO, [THREE])], ["output.0", "output.1.0", "output.1.1.0"], {}),
        ({"out": ONE, "aux": TWO}, ["out", "aux"], {}),
        ({0: ONE, "pool": [TWO, None]}, ["0", "pool.0"], {}),
        (Scores(ONE, 3), ["logits"], {"count": "int"}),
        (
            {"a": Scores(ONE, 3, {"b": [TWO, 0.5]})},
            ["a.logits", "a.more.b.0"],
            {"a.count": "int", "a.more.b.1": "float"},
        ),
        (Pair(ONE, (TWO, "x")), ["boxes", "labels.0"], {"labels.1": "str"}),
        (like_transformers(), ["logits"], {}),
        (SimpleNamespace(logits=ONE, size=torch.Size([1])), ["logits"], {"size": "Size"}),
        (torch.ones(2, 3).topk(1), ["values", "indices"], {}),
        ({"a.b": ONE, "a": {"b": TWO}}, ["a.b", "a.b.2"], {}),
        ({"input": ONE, "x": TWO}, ["input.2", "x"], {}),
        ((ONE, ONE), ["output.0", "output.1"], {}),
    ],
)
def test_tensors_are_named_by_the_way_to_them(value: Any, names: list[str], others: dict[str, str]) -> None:
    found = read_outputs(value, reserved=("input",))
    assert list(found.tensors) == names
    assert found.others == others
    assert [id(leaf) for leaf in found.tensors.values()] == [id(leaf) for leaf in tensor_leaves(value)]


class Opaque:
    def __init__(self) -> None:
        self.logits = ONE


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, r"returns no tensor, but output \(int\); expected at least one"),
        (None, "returns no tensor, but nothing"),
        ({"n": 3, "x": []}, r"returns no tensor, but n \(int\)"),
        ({"a": ONE, "b": Opaque()}, "output b is a Opaque that holds tensors; expected tensors in lists"),
        (torch.eye(2).to_sparse(), "output output is a sparse_coo tensor; expected dense ones"),
    ],
)
def test_what_cannot_be_told_apart_is_named(value: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read_outputs(value)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantised_tensors_are_named() -> None:
    with pytest.raises(ModelError, match="output scores is a quantised tensor; expected dense ones"):
        read_outputs({"scores": torch.quantize_per_tensor(ONE, 0.1, 0, torch.qint8)})


@pytest.mark.parametrize(
    ("value", "main"),
    [
        ({"classes": torch.arange(3), "logits": THREE}, "logits"),
        ({"loss": torch.tensor(1.0), "logits": THREE}, "logits"),
        ({"sure": THREE > 0, "classes": torch.arange(3)}, "sure"),
        (torch.tensor(1.0), "output"),
    ],
)
def test_the_main_output_is_one_that_errors_can_be_measured_on(value: Any, main: str) -> None:
    found = read_outputs(value)
    assert found.main == main
    assert main_output(value) is found.tensors[main]


def test_tensors_only_leaves_the_network_as_it_is() -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)).train()
    network[1].eval()
    wrapped = TensorsOnly(network)
    assert (network.training, network[1].training) == (True, False)
    assert [type(leaf) for leaf in wrapped(torch.zeros(2, 1, 2, 2))] == [Tensor]


class Flat(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(1, 4)


def test_whether_several_images_are_taken_is_tried() -> None:
    assert takes_several(nn.Flatten(), (1, 2, 2))
    assert not takes_several(Flat(), (1, 2, 2))
