"""Detections of two runtimes compared: matched by IoU, since their number and order hang on rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pruneport.arrays import AnyArray
from pruneport.models.outputs import Tolerance

__all__ = ["LEAST_IOU", "Detections", "MatchedDetections", "Matching", "box_iou"]

LEAST_IOU = 0.99
"""Of two boxes that are the same detection: a side of 100 pixels may differ by one."""
_CORNERS = 1e-4
"""Corners this close, as a share of the largest coordinate, are the same, too: boxes without area have no IoU."""
_SIDE = (1 - LEAST_IOU) / 4
"""So are those this close as a share of the longer side: of squares with such corners the IoU is at least the least."""
_UNDECIDED = 0.01  # most of the detections that may be undecided; one may be, of however few


class Detections(NamedTuple):
    """What a detector found in one image: boxes (N, 4) as two corners, scores (N,) and labels (N,)."""

    boxes: AnyArray
    scores: AnyArray
    labels: AnyArray


@dataclass(frozen=True, kw_only=True)
class MatchedDetections:
    """A comparison, as verify.json has it.

    Attributes:
        torch: Detections of torch, over all images.
        onnx: The same of ONNX Runtime.
        unmatched: Those of either without one of the same label in the other, with an IoU and a score as stated.
        undecided: Of these, those where torch itself decides otherwise for nearly the same input, one in a hundred at
            most; or all, of equal scores, where the same is found in every image.
        least_iou: The IoU that two boxes must have to be the same; the same corners do, too.
        score_tolerance: How far their scores may lie apart.
        lowest_iou: The lowest IoU of boxes that were matched by it; None where there are none.
        max_score_error: The largest difference of the scores of matched ones; None where there are none.
    """

    torch: int
    onnx: int
    unmatched: int
    undecided: int
    least_iou: float
    score_tolerance: float
    lowest_iou: float | None
    max_score_error: float | None


class Matching:
    """Comparison of detections, image by image and in both directions.

    Args:
        tolerance: Of the scores.
    """

    def __init__(self, tolerance: Tolerance) -> None:
        self._tolerance = tolerance
        self._torch = self._onnx = self._unmatched = self._undecided = self._of_equals = 0
        self._widest = tolerance.atol
        self._ious: list[float] = []
        self._errors: list[float] = []
        self._first: Detections | None = None
        self._images = 0
        self._constant = True

    def add(self, theirs: Detections, ours: Detections, nearby: Callable[[], Iterator[Detections]]) -> None:
        """Compare the detections of one image.

        Args:
            theirs: torch's.
            ours: The other runtime's.
            nearby: Gives torch's for inputs that are nearly the same; called where some are not matched.
        """
        tolerance = self._tolerance.allowed(float(np.abs(theirs.scores).max(initial=0)))
        self._widest = max(self._widest, tolerance)
        self._torch, self._onnx = self._torch + len(theirs.boxes), self._onnx + len(ours.boxes)
        same, iou = _same(theirs, ours, tolerance)
        for row in np.flatnonzero(same.any(1)):
            best = max(np.flatnonzero(same[row]), key=lambda column: iou[row, column])
            self._errors.append(float(np.abs(theirs.scores[row] - ours.scores[best])))
            if iou[row, best] >= LEAST_IOU:
                self._ious.append(float(iou[row, best]))
        only = np.logical_not(same.any(1)), np.logical_not(same.any(0))
        if only[0].any() or only[1].any():
            self._unmatched += int(only[0].sum() + only[1].sum())
            self._undecided += _undecided(theirs, ours, only, tolerance, nearby)
            self._of_equals += _tied_only(theirs, ours, only, tolerance)
        if self._first is None:
            self._first = theirs
        else:
            again, _ = _same(self._first, theirs, tolerance)
            self._constant &= bool(again.any(1).all() and again.any(0).all())
        self._images += 1

    @property
    def constant(self) -> bool:
        """Whether the same was found whatever was given; nothing at all, too."""
        return self._torch == 0 or (self._images > 1 and self._constant)

    @property
    def undecided(self) -> int:
        """Detections of one runtime alone, where torch could have decided either way."""
        return self._unmatched if self._all_equal else self._undecided

    @property
    def _all_equal(self) -> bool:
        """Whether the same was found in every image, and what has no match has an equal score that has none, either.

        Which of equal scores comes first is nobody's fault; nothing is proved by it.
        """
        return self.constant and self._of_equals == self._unmatched

    def record(self) -> MatchedDetections:
        """What was found, as verify.json has it."""
        return MatchedDetections(
            torch=self._torch,
            onnx=self._onnx,
            unmatched=self._unmatched,
            undecided=self.undecided,
            least_iou=LEAST_IOU,
            score_tolerance=self._widest,
            lowest_iou=min(self._ious) if self._ious else None,
            max_score_error=max(self._errors) if self._errors else None,
        )

    def faults(self) -> list[str]:
        """What is wrong, in clauses; empty where the two agree."""
        wrong, total = self._unmatched - self._undecided, self._torch + self._onnx
        if self._all_equal:
            return []
        faults = []
        if wrong:
            faults.append(
                f"{wrong} of {total} detections ({self._torch} in torch, {self._onnx} in ONNX Runtime) have none of "
                f"the same label in the other with an IoU of at least {LEAST_IOU:g} and a score within "
                f"{self._widest:.1e}"
            )
        if self._undecided > max(1, _UNDECIDED * total):
            faults.append(
                f"{self._undecided} of {total} detections differ where torch itself could have decided either way, "
                "which is too many to say that they agree"
            )
        return faults


def box_iou(some: AnyArray, others: AnyArray) -> AnyArray:
    """Intersection over union of boxes (N, 4) and (M, 4), each two corners: (N, M), 0 where both have no area.

    Example:
        >>> some, others = np.array([[0.0, 0, 2, 2]]), np.array([[0.0, 0, 2, 2], [1, 0, 3, 2], [4, 4, 5, 5]])
        >>> box_iou(some, others).round(3).tolist()
        [[1.0, 0.333, 0.0]]
    """
    some, others = some.astype(np.float64), others.astype(np.float64)
    low = np.maximum(some[:, None, :2], others[None, :, :2])
    high = np.minimum(some[:, None, 2:], others[None, :, 2:])
    inside = np.clip(high - low, 0, None).prod(2)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(1) for boxes in (some, others)]
    union = areas[0][:, None] + areas[1][None, :] - inside
    iou: AnyArray = np.divide(inside, union, out=np.zeros_like(inside), where=union > 0)
    return iou


def _same(some: Detections, others: Detections, tolerance: float) -> tuple[AnyArray, AnyArray]:
    """Which detections (N) are which of the others (M): (N, M), and their IoU; what is not a number is none."""
    iou = box_iou(some.boxes, others.boxes)
    largest = float(np.abs(some.boxes[np.isfinite(some.boxes)]).max(initial=0))
    sides = (some.boxes[:, 2:] - some.boxes[:, :2]).max(1, initial=0)[:, None]
    reach = np.maximum(_CORNERS * largest, _SIDE * sides)
    apart = np.abs(some.boxes[:, None].astype(np.float64) - others.boxes[None]).max(2, initial=0)
    placed = (iou >= LEAST_IOU) | (apart <= reach)
    labelled = some.labels[:, None] == others.labels[None]
    return placed & labelled & _tied(some.scores, others.scores, tolerance), iou


def _tied(some: AnyArray, others: AnyArray, tolerance: float) -> AnyArray:
    tied: AnyArray = np.abs(some.astype(np.float64)[:, None] - others[None]) <= tolerance
    return tied


def _tied_only(theirs: Detections, ours: Detections, only: tuple[AnyArray, AnyArray], tolerance: float) -> int:
    """How many detections of one runtime alone have one of the same score of the other alone."""
    tied = _tied(theirs.scores, ours.scores, tolerance) & only[0][:, None] & only[1][None]
    return int(tied.any(1).sum() + tied.any(0).sum())


def _undecided(
    theirs: Detections,
    ours: Detections,
    only: tuple[AnyArray, AnyArray],
    tolerance: float,
    nearby: Callable[[], Iterator[Detections]],
) -> int:
    """How many detections of one runtime alone torch itself decides either way, for inputs that are nearly the same."""
    lost, come = np.zeros_like(only[0]), np.zeros_like(only[1])
    for near in nearby():
        lost |= only[0] & ~_same(theirs, near, tolerance)[0].any(1)
        come |= only[1] & _same(ours, near, tolerance)[0].any(1)
    return int(lost.sum() + come.sum())
