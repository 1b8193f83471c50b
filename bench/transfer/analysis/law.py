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
from functools import partial
from types import MappingProxyType

import numpy as np
from scipy.optimize import least_squares, nnls

from pruneport.arrays import FloatArray
from pruneport.errors import InputError

__all__ = ["FORMS", "Check", "Law", "Point", "best_macs_kept", "check_law", "fit_law"]

Shape = Callable[[FloatArray, FloatArray, FloatArray], FloatArray]
_STARTS = (-2.0, -1.0, 0.0)  # of every parameter's logarithm


def _sparse(p: FloatArray, k: FloatArray, c: FloatArray) -> FloatArray:
    return np.asarray(np.exp(p[0]) * (1 - k) ** np.exp(p[1]) + (c / k) ** -np.exp(p[2]))


def _additive(p: FloatArray, k: FloatArray, c: FloatArray) -> FloatArray:
    return np.asarray(np.exp(p[0]) * k ** -np.exp(p[1]) + (c / k) ** -np.exp(p[2]))


def _product(p: FloatArray, k: FloatArray, c: FloatArray) -> FloatArray:
    return np.asarray(k ** -np.exp(p[0]) * (c / k) ** -np.exp(p[1]))


def _joint(p: FloatArray, k: FloatArray, c: FloatArray) -> FloatArray:
    return np.asarray(np.exp(p[0]) * (1 - k) ** np.exp(p[1]) * c ** np.exp(p[3]) + (c / k) ** -np.exp(p[2]))


def _offset(p: FloatArray, k: FloatArray, c: FloatArray) -> FloatArray:
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
    macs_kept: float
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

    def shape(self, macs_kept: float, budget: float) -> float:
        """The part that all tasks share; the best share of MACs has the least."""
        _, shape = FORMS[self.form]
        return float(shape(np.array(self.parameters), np.array(macs_kept), np.array(budget / self.unit)))

    def error(self, task: str, macs_kept: float, budget: float) -> float:
        """The error of a fitted task."""
        return self.floors[task] + self.scales[task] * self.shape(macs_kept, budget)


@dataclass(frozen=True, kw_only=True)
class Check:
    """How well a form predicts what it was not fitted on.

    Attributes:
        form: Which.
        error_rms: Error of its predictions for a task left out, whose floor and scale come from its dense curve alone;
            like the others None where that cannot be left out, as the only task.
        regret: Mean error lost by taking the share that it predicts in place of the best, over tasks left out and
            budgets.
        budget_regret: The same where the largest budget was left out.
        dense_regret: Mean error lost by always training the dense network.
    """

    form: str
    error_rms: float | None
    regret: float | None
    budget_regret: float | None
    dense_regret: float | None


def fit_law(points: Sequence[Point], form: str) -> Law:
    """Least squares over the shape's parameters; floor and scale of each task are solved for inside, at least 0.

    Raises:
        InputError: There are too few points: fewer than a law has parameters, one share, or one budget.
    """
    count, _ = FORMS[form]
    tasks, shares, budgets = ({getattr(point, axis) for point in points} for axis in ("task", "macs_kept", "budget"))
    least = count + 2 * len(tasks) + 1  # each task has a floor and a scale
    if len(points) < least or len(shares) < 2 or len(budgets) < 2:
        raise InputError(
            f"a law needs at least {least} results at two shares of the MACs and two budgets; there are {len(points)}, "
            f"at {len(shares)} and {len(budgets)}. Let the study run on, or give it more."
        )
    unit = min(point.budget for point in points)
    residuals = partial(_residuals, points=points, form=form, unit=unit)
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


def best_macs_kept(law: Law, shares: Sequence[float], budget: float) -> float:
    """The share of MACs with the least predicted error at a budget."""
    return min(shares, key=lambda macs_kept: law.shape(macs_kept, budget))


def check_law(points: Sequence[Point], form: str) -> Check:
    """Fit without each task in turn, and without the largest budget, and see what the law makes of them."""
    by_task = {
        task: [point for point in points if point.task == task] for task in sorted({point.task for point in points})
    }
    squares: list[float] = []
    regrets: list[float] = []
    for task, own in by_task.items():
        law = _fitted([point for point in points if point.task != task], form)
        if law is not None:
            squares += _squares(law, own)
            regrets += _regrets(own, law)
    largest = max(point.budget for point in points)
    law = _fitted([point for point in points if point.budget < largest], form)
    late = [[point for point in own if point.budget == largest] for own in by_task.values()]
    budget_regrets = [] if law is None else [regret for own in late for regret in _regrets(own, law)]
    return Check(
        form=form,
        error_rms=_mean(squares, root=True),
        regret=_mean(regrets),
        budget_regret=_mean(budget_regrets),
        dense_regret=_mean([regret for own in by_task.values() for regret in _regrets(own, None)]),
    )


def _fitted(points: Sequence[Point], form: str) -> Law | None:
    """The law, or None where there are too few points."""
    try:
        return fit_law(points, form)
    except InputError:
        return None


def _mean(values: Sequence[float], *, root: bool = False) -> float | None:
    if not values:
        return None
    return float(np.sqrt(np.mean(values))) if root else float(np.mean(values))


def _squares(law: Law, own: Sequence[Point]) -> list[float]:
    """Squared errors of prediction for the pruned networks of a task of which the dense curve alone is known."""
    dense = [point for point in own if point.macs_kept == 1]
    if not dense:
        return []
    floors, scales = _linear(dense, law.form, np.array(law.parameters), law.unit)
    return [
        (floors[point.task] + scales[point.task] * law.shape(point.macs_kept, point.budget) - point.error) ** 2
        for point in own
        if point.macs_kept < 1
    ]


def _regrets(points: Sequence[Point], law: Law | None) -> list[float]:
    """Error above the best, at every budget of one task, by the law's share; without one, of the dense network."""
    found = []
    for budget in sorted({point.budget for point in points}):
        errors = {point.macs_kept: point.error for point in points if point.budget == budget}
        chosen = 1.0 if law is None else best_macs_kept(law, sorted(errors), budget)
        if chosen in errors:
            found.append(errors[chosen] - min(errors.values()))
    return found


def _residuals(parameters: FloatArray, points: Sequence[Point], form: str, unit: float) -> FloatArray:
    """The gaps between the law with these parameters and the points."""
    floors, scales = _linear(points, form, parameters, unit)
    shapes = _shapes(points, form, parameters, unit)
    predicted = [floors[point.task] + scales[point.task] * value for point, value in zip(points, shapes, strict=True)]
    gaps: FloatArray = np.array(predicted) - np.array([point.error for point in points])
    return gaps


def _linear(
    points: Sequence[Point], form: str, parameters: FloatArray, unit: float
) -> tuple[dict[str, float], dict[str, float]]:
    """Floor and scale of each task, by non-negative least squares."""
    shapes = _shapes(points, form, parameters, unit)
    floors, scales = {}, {}
    for task in {point.task for point in points}:
        rows = [index for index, point in enumerate(points) if point.task == task]
        matrix = np.stack([np.ones(len(rows)), shapes[rows]], axis=1)
        (floors[task], scales[task]), _ = nnls(matrix, np.array([points[row].error for row in rows]))
    return floors, scales


def _shapes(points: Sequence[Point], form: str, parameters: FloatArray, unit: float) -> FloatArray:
    macs_kept = np.array([point.macs_kept for point in points])
    budgets = np.array([point.budget for point in points]) / unit
    return FORMS[form][1](parameters, macs_kept, budgets)
