"""A law of transfer: error as a function of the share of MACs kept and the training compute.

error(task, k, C) = floor(task) + scale(task) * shape(k, C), where the shape's exponents are all tasks'.
Floor and scale move a task's curves as a whole, so the best share at a budget follows from the shape alone, for tasks
that were not fitted on, too. C / k stands for the images seen: a smaller network sees more of them with the same
compute. The forms:

- ``sparse``: a (1 - k)^b + (C / k)^-c. Capacity lost and data seen add up, as in the scaling law for sparse networks
  (Frantar et al. 2023, arXiv 2309.08520), with the dense network's capacity in the floor.
- ``additive``: a k^-b + (C / k)^-c, the same with a power of the capacity left (Hoffmann et al. 2022, arXiv
  2203.15556).
- ``product``: k^-b (C / k)^-c: capacity matters in proportion (Kaplan et al. 2020, arXiv 2001.08361, the limit in
  which neither term saturates).
- ``offset``: a (1 - k)^b + (1 + C / (k d))^-c: below a compute of d little is learnt, and errors stay at chance (the
  transition from random guessing in Rosenfeld et al. 2019, arXiv 1909.12673).
- ``joint``: a (1 - k)^b C^d + (C / k)^-c: lost capacity matters more the longer one trains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from scipy.optimize import least_squares, nnls

from pruneport.errors import InputError

__all__ = ["FORMS", "Check", "Law", "Point", "best_kept", "check_law", "fit_law"]

Array = np.ndarray[Any, np.dtype[np.float64]]
Shape = Callable[[Array, Array, Array], Array]
_LEAST_POINTS = 6
_STARTS = (-2.0, -1.0, 0.0)  # of every parameter's logarithm


def _sparse(p: Array, k: Array, c: Array) -> Array:
    return np.asarray(np.exp(p[0]) * (1 - k) ** np.exp(p[1]) + (c / k) ** -np.exp(p[2]))


def _additive(p: Array, k: Array, c: Array) -> Array:
    return np.asarray(np.exp(p[0]) * k ** -np.exp(p[1]) + (c / k) ** -np.exp(p[2]))


def _product(p: Array, k: Array, c: Array) -> Array:
    return np.asarray(k ** -np.exp(p[0]) * (c / k) ** -np.exp(p[1]))


def _joint(p: Array, k: Array, c: Array) -> Array:
    return np.asarray(np.exp(p[0]) * (1 - k) ** np.exp(p[1]) * c ** np.exp(p[3]) + (c / k) ** -np.exp(p[2]))


def _offset(p: Array, k: Array, c: Array) -> Array:
    return np.asarray(np.exp(p[0]) * (1 - k) ** np.exp(p[1]) + (1 + c / k / np.exp(p[3])) ** -np.exp(p[2]))


FORMS: Mapping[str, tuple[int, Shape]] = MappingProxyType(
    {
        "sparse": (3, _sparse),
        "additive": (3, _additive),
        "product": (2, _product),
        "offset": (4, _offset),
        "joint": (4, _joint),
    }
)


@dataclass(frozen=True, kw_only=True)
class Point:
    """One measured error: of a task, at a share of the MACs, with a budget of training FLOPs."""

    task: str
    kept: float
    budget: float
    error: float


@dataclass(frozen=True, kw_only=True)
class Law:
    """A fitted form.

    Attributes:
        form: One of ``FORMS``.
        parameters: Logarithms of the exponents and factors in the form's order.
        unit: FLOPs that C is counted in.
        floors: Error that no compute removes, by task.
        scales: Size of the shape, by task.
        rms: Root mean square of the residuals, as a share of the images.
    """

    form: str
    parameters: tuple[float, ...]
    unit: float
    floors: Mapping[str, float]
    scales: Mapping[str, float]
    rms: float

    def shape(self, kept: float, budget: float) -> float:
        """The part that all tasks share; the best share of MACs has the least."""
        _, shape = FORMS[self.form]
        return float(shape(np.array(self.parameters), np.array(kept), np.array(budget / self.unit)))

    def error(self, task: str, kept: float, budget: float) -> float:
        """The error of a fitted task."""
        return self.floors[task] + self.scales[task] * self.shape(kept, budget)


@dataclass(frozen=True, kw_only=True)
class Check:
    """How well a form predicts what it was not fitted on.

    Attributes:
        form: Which.
        error_rms: Error of its predictions for a task left out, whose floor and scale come from its dense curve alone.
        regret: Mean error lost by taking the share that it predicts in place of the best, over tasks left out and
            budgets.
        budget_regret: The same where the largest budget was left out.
        dense_regret: Mean error lost by always training the dense network.
    """

    form: str
    error_rms: float
    regret: float
    budget_regret: float
    dense_regret: float


def fit_law(points: Sequence[Point], form: str) -> Law:
    """Least squares over the shape's parameters; floor and scale of each task are solved for inside, at least 0.

    Raises:
        InputError: There are too few points.
    """
    if len(points) < _LEAST_POINTS or len({point.kept for point in points}) < 2:
        raise InputError(
            f"a law needs at least {_LEAST_POINTS} results at two shares of the MACs; there are {len(points)}. Let the "
            "study run on."
        )
    count, _ = FORMS[form]
    unit = min(point.budget for point in points)
    residuals = _residuals(points, form, unit)
    fits = [
        least_squares(residuals, np.full(count, start), bounds=(-8, 3), x_scale=1.0, max_nfev=200) for start in _STARTS
    ]
    best = min(fits, key=lambda fit: fit.cost)
    floors, scales = _linear(points, form, best.x, unit)
    return Law(
        form=form,
        parameters=tuple(map(float, best.x)),
        unit=unit,
        floors=floors,
        scales=scales,
        rms=float(np.sqrt(np.mean(np.square(residuals(best.x))))),
    )


def best_kept(law: Law, shares: Sequence[float], budget: float) -> float:
    """The share of MACs with the least predicted error at a budget."""
    return min(shares, key=lambda kept: law.shape(kept, budget))


def check_law(points: Sequence[Point], form: str) -> Check:
    """Fit without each task in turn, and without the largest budget, and see what the law makes of them.

    Raises:
        InputError: There are fewer than two tasks, or too few points.
    """
    tasks = sorted({point.task for point in points})
    if len(tasks) < 2:
        raise InputError("leaving one task out needs at least two tasks.")
    squares: list[float] = []
    regrets: list[float] = []
    for task in tasks:
        law = fit_law([point for point in points if point.task != task], form)
        own = [point for point in points if point.task == task]
        dense = [point for point in own if point.kept == 1]
        if dense:
            floors, scales = _linear(dense, form, np.array(law.parameters), law.unit)
            squares += [
                (floors[task] + scales[task] * law.shape(point.kept, point.budget) - point.error) ** 2
                for point in own
                if point.kept < 1
            ]
        regrets += _regrets(own, lambda shares, budget, law=law: best_kept(law, shares, budget))  # type: ignore[misc]
    largest = max(point.budget for point in points)
    early = [point for point in points if point.budget < largest]
    late = [point for point in points if point.budget == largest]
    law = fit_law(early, form)
    budget_regrets = [
        regret
        for task in tasks
        for regret in _regrets(
            [point for point in late if point.task == task], lambda shares, budget: best_kept(law, shares, budget)
        )
    ]
    dense_regrets = [
        regret
        for task in tasks
        for regret in _regrets([point for point in points if point.task == task], lambda shares, budget: max(shares))
    ]
    return Check(
        form=form,
        error_rms=float(np.sqrt(np.mean(squares))) if squares else float("nan"),
        regret=float(np.mean(regrets)),
        budget_regret=float(np.mean(budget_regrets)),
        dense_regret=float(np.mean(dense_regrets)),
    )


def _regrets(points: Sequence[Point], choose: Callable[[Sequence[float], float], float]) -> list[float]:
    """Error above the best, at every budget of one task."""
    found = []
    for budget in sorted({point.budget for point in points}):
        errors = {point.kept: point.error for point in points if point.budget == budget}
        found.append(errors[choose(sorted(errors), budget)] - min(errors.values()))
    return found


def _residuals(points: Sequence[Point], form: str, unit: float) -> Callable[[Array], Array]:
    def residuals(parameters: Array) -> Array:
        floors, scales = _linear(points, form, parameters, unit)
        shapes = _shapes(points, form, parameters, unit)
        predicted = [
            floors[point.task] + scales[point.task] * value for point, value in zip(points, shapes, strict=True)
        ]
        gaps: Array = np.array(predicted) - np.array([point.error for point in points])
        return gaps

    return residuals


def _linear(
    points: Sequence[Point], form: str, parameters: Array, unit: float
) -> tuple[dict[str, float], dict[str, float]]:
    """Floor and scale of each task, by non-negative least squares."""
    shapes = _shapes(points, form, parameters, unit)
    floors, scales = {}, {}
    for task in {point.task for point in points}:
        rows = [index for index, point in enumerate(points) if point.task == task]
        matrix = np.stack([np.ones(len(rows)), shapes[rows]], axis=1)
        (floors[task], scales[task]), _ = nnls(matrix, np.array([points[row].error for row in rows]))
    return floors, scales


def _shapes(points: Sequence[Point], form: str, parameters: Array, unit: float) -> Array:
    kept = np.array([point.kept for point in points])
    budgets = np.array([point.budget for point in points]) / unit
    return FORMS[form][1](parameters, kept, budgets)
