"""Detections matched by IoU, label and score: what agrees, what does not, and where torch itself goes either way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from pruneport.export.compared import Compared
from pruneport.export.detections import Detections, Matching, box_iou
from pruneport.models.outputs import FLOAT32, Outputs


def _found(*rows: tuple[float, ...]) -> Detections:
    """Rows of x, y, width, height, score, label."""
    table = np.array(rows, dtype=np.float32).reshape(-1, 6)
    boxes = np.concatenate([table[:, :2], table[:, :2] + table[:, 2:4]], 1)
    return Detections(boxes, table[:, 4], table[:, 5].astype(np.int64))


A, B, C = (10, 10, 50, 40, 0.9, 1), (12, 10, 50, 40, 0.8, 2), (70, 20, 30, 30, 0.7, 1)


def _compare(theirs: Detections, ours: Detections, *near: Detections) -> Matching:
    matching = Matching(FLOAT32)

    def nearby() -> Iterator[Detections]:
        yield from near or (theirs,)

    matching.add(theirs, ours, nearby)
    return matching


def test_iou_of_boxes() -> None:
    some = np.array([[0, 0, 4, 4], [1, 1, 1, 3]], np.float32)
    others = np.array([[0, 0, 4, 4], [2, 2, 6, 6], [1, 1, 1, 3], [9, 9, 8, 8]], np.float32)
    assert box_iou(some, others).round(4).tolist() == [[1, 0.1429, 0, 0], [0, 0, 0, 0]]
    assert box_iou(some, others[:0]).shape == (2, 0)


def test_another_order_agrees() -> None:
    matching = _compare(_found(A, B, C), _found(C, A, B))
    assert matching.faults() == []
    assert (matching.record().torch, matching.record().unmatched, matching.record().lowest_iou) == (3, 0, 1.0)
    assert not matching.constant


@pytest.mark.parametrize(
    "changed",
    [(12, 10, 50, 40, 0.8, 3), (12, 10, 50, 40, 0.81, 2), (16, 10, 50, 40, 0.8, 2), (12, 10, 50, 41, 0.8, 2)],
    ids=["label", "score", "place", "size"],
)
def test_a_change_is_a_fault(changed: tuple[float, ...]) -> None:
    (fault,) = _compare(_found(A, B, C), _found(A, changed, C)).faults()
    assert fault.startswith(
        "2 of 6 detections (3 in torch, 3 in ONNX Runtime) have none of the same label in the other"
    )


@pytest.mark.parametrize(("theirs", "ours"), [((A, B, C), (A, B)), ((A, B), (A, B, C)), ((), (A,)), ((A,), ())])
def test_one_too_many_or_too_few_is_a_fault(theirs: Any, ours: Any) -> None:
    (fault,) = _compare(_found(*theirs), _found(*ours)).faults()
    assert fault.startswith("1 of ")


def test_what_is_no_number_has_no_match() -> None:
    broken = _found(A, B)
    broken.boxes[0, 0] = np.nan
    assert _compare(broken, broken).faults()
    broken = _found(A, B)
    broken.scores[0] = np.nan
    assert _compare(broken, broken).faults()


def test_boxes_without_area_match_by_their_corners() -> None:
    flat, point = (40, 0, 30, 0, 0.5, 1), (40, 0, 0, 0, 0.5, 1)
    assert _compare(_found(A, flat), _found(A, flat)).faults() == []
    assert _compare(_found(A, flat), _found(A, (40.05, 0, 30, 0, 0.5, 1))).faults() == []
    assert _compare(_found(A, flat), _found(A, (40.1, 0, 30, 0, 0.5, 1))).faults()
    assert _compare(_found(A, point), _found(A, point)).faults() == []
    assert _compare(_found(A, point), _found(A, (40.05, 0, 0, 0, 0.5, 1))).faults()


def test_where_torch_goes_either_way() -> None:
    """The last of a hundred is kept or not, as torch itself does for nearly the same input."""
    many = [(2 * i, 3 * i, 20, 20, 0.3 + 0.005 * i, 1) for i in range(100)]
    all_of_them, one_less = _found(*many), _found(*many[1:])
    assert _compare(all_of_them, one_less, one_less).faults() == []
    assert _compare(one_less, all_of_them, all_of_them).faults() == []
    assert _compare(one_less, all_of_them, one_less).faults()
    assert _compare(all_of_them, one_less, all_of_them).faults()
    half = _found(*many[::2])
    (fault,) = _compare(all_of_them, half, half).faults()
    assert "50 of 150 detections differ where torch itself could have decided either way" in fault


def test_equal_scores_that_change_places() -> None:
    """Of a network that finds the same in every image, all with one score, nothing is proved, and no fault found."""
    twin, other = (14, 14, 50, 40, 0.7, 1), (14, 14, 50, 40, 0.6, 1)
    matching = _compare(_found(A, C), _found(A, twin))
    assert (matching.record().unmatched, matching.undecided, len(matching.faults())) == (2, 0, 1)
    matching.add(_found(A, C), _found(A, twin), lambda: iter(()))
    assert (matching.constant, matching.faults(), matching.undecided) == (True, [], 4)
    matching.add(_found(A, C), _found(A, other), lambda: iter(()))
    assert matching.faults()[0].startswith("6 of 12 detections")


def test_the_same_in_every_image_proves_nothing() -> None:
    for images, constant in (((A, A), True), (((A, B), (A, B)), False), (((), ()), True)):
        matching = Matching(FLOAT32)
        for rows in images:
            found = _found(rows) if rows == A else _found(*rows)
            matching.add(found, found, lambda: iter(()))
        if images[0] == (A, B):
            matching.add(_found(C), _found(C), lambda: iter(()))
        assert matching.constant == constant


def test_other_outputs_beside_them_are_compared_as_ever() -> None:
    def outputs(found: Detections, features: Any) -> dict[str, Any]:
        parts = {f"found.0.{name}": part for name, part in found._asdict().items()}
        return {**parts, "features": np.asarray(features, np.float32)}

    def compare(ours: dict[str, Any]) -> Compared:
        compared = Compared(FLOAT32, list(ours))
        theirs = outputs(_found(A, B, C), [[1.0, 2.0]])
        tensors = {name: torch.from_numpy(part) for name, part in theirs.items()}
        compared.add(Outputs(tensors, {}), list(ours.values()), lambda: iter(()))
        return compared

    same = compare(outputs(_found(B, C, A), [[1.0, 2.0]]))
    assert (same.faults(), same.max_abs_error) == ([], 0.0)
    assert same.detections is not None
    assert same.detections.onnx == 3
    (fault,) = compare(outputs(_found(B, C, A), [[1.0, 2.1]])).faults()
    assert fault.startswith("features differs by")
    (fault,) = compare(outputs(_found(B, C), [[1.0, 2.0]])).faults()
    assert fault.startswith("1 of 5 detections")
    spoilt = outputs(_found(A, B, C), [[1.0, 2.0]])
    spoilt["found.0.boxes"] = spoilt["found.0.boxes"][:, :3]
    assert any("found.0.boxes is" in fault for fault in compare(spoilt).faults())
