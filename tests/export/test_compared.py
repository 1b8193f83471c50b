"""Comparing outputs: by name, whole numbers exactly, and nothing passes that is not the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pruneport.export.compared import Compared
from pruneport.models.outputs import FLOAT32, Outputs


def never() -> Iterator[Outputs]:
    raise AssertionError("asked for other inputs where nothing differs")


def compared(theirs: dict[str, Tensor], ours: dict[str, Any], nearby: Any = never, named: bool = True) -> Compared:
    found = Compared(FLOAT32, tuple(ours) if named else None)
    found.add(Outputs(theirs, {}), list(ours.values()), nearby)
    return found


SCORES, CLASSES = torch.tensor([[1.0, 2.0], [4.0, 3.0]]), torch.tensor([1, 0])


def test_outputs_are_matched_by_name_and_not_by_place() -> None:
    theirs = {"first": SCORES, "second": SCORES * 2}
    swapped = {"second": (SCORES * 2).numpy(), "first": SCORES.numpy()}
    assert compared(theirs, swapped).faults() == []
    misnamed = {"second": SCORES.numpy(), "first": (SCORES * 2).numpy()}
    assert compared(theirs, misnamed).faults() == [
        "first differs by 4.00e+00, allowed 4.10e-04",
        "second differs by 4.00e+00, allowed 8.10e-04",
    ]
    assert compared(theirs, misnamed, named=False).faults() == []  # a file from before outputs were named


@pytest.mark.parametrize(
    ("ours", "named", "fault"),
    [
        ({"scores": SCORES.numpy()}, True, "torch returns scores, classes, the ONNX file scores"),
        ({"scores": SCORES.numpy(), "labels": CLASSES.numpy()}, True, "the ONNX file scores, labels"),
        ({"scores": SCORES.numpy()}, False, "torch returns scores, classes, the ONNX file 1 outputs"),
        (
            {"scores": SCORES.numpy().T[:1], "classes": CLASSES.numpy()},
            True,
            "scores is float32 2x2 in torch, float32 1x2 in ONNX Runtime",
        ),
        (
            {"scores": SCORES.numpy(), "classes": CLASSES.numpy().astype(np.float32)},
            True,
            "classes is int64 2 in torch, float32 2 in ONNX Runtime",
        ),
        (
            {"scores": SCORES.numpy(), "classes": CLASSES.numpy() > 0},
            True,
            "classes is int64 2 in torch, bool 2 in ONNX Runtime",
        ),
    ],
)
def test_other_names_shapes_or_kinds_are_named(ours: dict[str, Any], named: bool, fault: str) -> None:
    found = compared({"scores": SCORES, "classes": CLASSES}, ours, named=named)
    assert [part for part in found.faults() if fault in part]
    assert found.max_abs_error is None
    assert found.max_rel_error is None


@pytest.mark.parametrize(
    ("wanted", "returned", "ok"),
    [
        ([1.0, -np.inf], [1.0, -np.inf], True),
        ([1.0, -np.inf], [1.0, np.inf], False),
        ([1.0, -np.inf], [1.0, 5.0], False),
        ([1.0, -np.inf], [1.1, -np.inf], False),  # an infinite output makes no tolerance infinite
        ([1.0, 2.0], [1.0, np.inf], False),
        ([1.0, np.nan], [1.0, np.nan], False),
        ([0.0, 0.0], [0.0, 1e-4], False),
    ],
)
def test_infinite_values_agree_only_where_they_are_equal(wanted: Any, returned: Any, ok: bool) -> None:
    found = compared({"x": torch.tensor([wanted])}, {"x": np.array([returned], np.float32)})
    assert (found.faults() == []) is ok


def test_single_numbers_and_empty_outputs_are_compared() -> None:
    theirs = {"loss": torch.tensor(2.0), "none": torch.zeros(0, 4), "sure": torch.tensor(True)}
    assert compared(theirs, {name: value.numpy() for name, value in theirs.items()}).faults() == []
    wrong = {"loss": np.float32(2.1), "none": np.zeros((0, 4), np.float32), "sure": np.array(True)}
    assert compared(theirs, wrong).faults() == ["loss differs by 1.00e-01, allowed 2.10e-04"]


@pytest.mark.parametrize("returned", [[1, 1], [True, False]])
def test_whole_numbers_must_be_equal(returned: list[Any]) -> None:
    theirs = torch.tensor(returned).logical_not() if isinstance(returned[0], bool) else CLASSES
    same = lambda: iter([Outputs({"x": theirs}, {})] * 3)  # noqa: E731
    (fault,) = compared({"x": theirs}, {"x": np.array(returned)}, same).faults()
    assert fault.startswith("x differs in ")
    assert fault.endswith("of 2 whole numbers")


def test_only_what_torch_itself_leaves_open_may_differ() -> None:
    theirs = torch.zeros(300, dtype=torch.long)
    ours = theirs.numpy().copy()
    ours[[5, 7]] = 3
    flips = theirs.clone()
    flips[5] = 3

    def nearby() -> Iterator[Outputs]:
        yield Outputs({"x": theirs}, {})
        yield Outputs({"x": flips}, {})

    found = compared({"x": theirs}, {"x": ours}, nearby)
    assert (found.undecided, found.faults()) == (1, ["x differs in 1 of 300 whole numbers"])
    ours[7] = 0
    found = compared({"x": theirs}, {"x": ours}, nearby)
    assert (found.undecided, found.faults()) == (1, [])
    ours[5] = 2  # neither of the two that torch gives
    assert compared({"x": theirs}, {"x": ours}, nearby).faults() == ["x differs in 1 of 300 whole numbers"]


def test_too_many_open_ones_say_nothing() -> None:
    theirs, ours = torch.zeros(300, dtype=torch.long), np.zeros(300, np.int64)
    ours[:4] = 1
    nearby = lambda: iter([Outputs({"x": torch.ones(300, dtype=torch.long)}, {})])  # noqa: E731
    (fault,) = compared({"x": theirs}, {"x": ours}, nearby).faults()
    assert fault.startswith("x differs in 4 of 300 whole numbers where torch itself gives several values")
    ours[3] = 0
    assert compared({"x": theirs}, {"x": ours}, nearby).faults() == []


def test_batches_add_up() -> None:
    found = Compared(FLOAT32)
    found.add(Outputs({"x": SCORES}, {}), [SCORES.numpy() + np.float32(2e-4)], never)
    assert found.faults() == []
    found.add(Outputs({"x": SCORES * 100}, {}), [(SCORES * 100).numpy()[:, ::-1]], never)
    assert found.top1_agreement == 0.5
    assert found.max_abs_error == pytest.approx(100)
    assert found.faults() == ["x differs by 1.00e+02, allowed 4.00e-02"]


def test_a_long_list_of_faults_is_cut() -> None:
    theirs = {f"x{number}": SCORES for number in range(9)}
    faults = compared(theirs, {name: value.numpy() + 1 for name, value in theirs.items()}).faults()
    assert len(faults) == 7
    assert faults[-1] == "and 3 more"


@pytest.mark.parametrize(
    ("theirs", "constant"),
    [
        ({"x": torch.zeros(3, 4)}, True),
        ({"x": torch.tensor([[1.0, 2.0], [1.0, 2.0]])}, True),
        ({"x": torch.tensor([[1.0, 2.0]])}, False),  # of one input it cannot be said, but where all is one value
        ({"x": torch.tensor([[2.0, 2.0]])}, True),
        ({"x": SCORES}, False),
        ({"x": torch.ones(2, 2), "classes": CLASSES}, False),
        ({"x": torch.ones(2, 2), "classes": CLASSES * 0}, True),
        ({"x": torch.ones(2, 0)}, True),
        ({"loss": torch.tensor(2.0)}, True),
        ({"x": torch.tensor([[1.0, -torch.inf], [3.0, -torch.inf]])}, False),
    ],
)
def test_outputs_that_are_the_same_whatever_is_given(theirs: dict[str, Tensor], constant: bool) -> None:
    assert compared(theirs, {name: value.numpy() for name, value in theirs.items()}).constant is constant


def test_a_single_input_after_another_is_one_of_two() -> None:
    found = Compared(FLOAT32)
    for value in (1.0, 2.0):
        found.add(Outputs({"x": torch.full((1, 3), value)}, {}), [np.full((1, 3), value, np.float32)], never)
    assert not found.constant
