"""The latency of any widths, fitted to timings of whole networks.

Of a layer with widths f_in and f_out (shares of the dense ones, rounded up to the device's step) it takes
a f_in f_out + b f_out + c f_in for compute and for reading and writing activations, and t0 whatever its widths are:

    T = t0 + sum over layers of (a f_in f_out + b f_out + c f_in)

The coefficients are at least 0 and fit the timings in relative terms (non-negative least squares), drawn a little
towards the layers' shares of the multiply-accumulates, of which there may be more than timings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pruneport.arrays import FloatArray
from pruneport.compress.allocation.forms import LayerShares, Quadratic, Tables

__all__ = ["LatencyForm", "LatencyModel", "Timing", "fit_latency"]

_RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # the one that predicts timings left out best is taken
_SAME = 9  # digits by which sizes are told apart
_ITERATIONS = 30  # for each coefficient, ten times scipy's own limit, beyond which it raises
_DENSE_WEIGHT = 10.0  # the dense network's timing is 1 by definition


@dataclass(frozen=True, kw_only=True, eq=False)
class Timing:
    """The measured latency of one allocation.

    Attributes:
        kept: Units kept, (groups,).
        share: Of the dense network's latency, which was timed in turns with it.
        weight: How much it counts in a fit.
    """

    kept: FloatArray
    share: float
    weight: float = 1.0


class LatencyForm:
    """The form of a network's latency: features of the kept widths, each with a coefficient to be fitted.

    Args:
        layers: The layers, and what is left of their widths.
        dense: Dense widths of all groups, (groups,).
        steps: The device's step of each group's width, in units, (groups,).
    """

    def __init__(self, layers: LayerShares, dense: FloatArray, steps: FloatArray) -> None:
        self.dense, self.steps, self.presence = dense, steps, layers.presence
        rows = np.round(np.column_stack([layers.start, layers.slope]), _SAME)
        unique, numbers = np.unique(rows, axis=0, return_inverse=True)  # many layers have the widths of one group
        self._start, self._slope = unique[:, 0], unique[:, 1:]
        numbers, changes = numbers.ravel(), np.abs(self._slope).sum(axis=1) > 0
        self._fixed = float(layers.macs.sum())
        prior: dict[tuple[int, int], float] = {(-1, -1): 0.0}
        for macs, *sides in zip(layers.macs, numbers[layers.first], numbers[layers.second], strict=True):
            one, other = sorted((int(side) if changes[side] else -1 for side in sides), reverse=True)
            prior[one, other] = prior.get((one, other), 0.0) + float(macs)
            for side in (one, other):
                prior.setdefault((side, -1), 0.0)
        for row in layers.branches:
            prior.setdefault((int(numbers[row]), -1), 0.0)
        self._pairs = list(prior)
        self.prior = np.array(list(prior.values())) / max(1.0, self._fixed)

    def effective(self, kept: FloatArray) -> FloatArray:
        """Widths as the device counts them: up to the next step, over the dense width's own; then branches.

        Returns:
            (…, groups and branches), of kept widths (…, groups).
        """
        rounded = np.ceil(kept / self.steps - 1e-9) * self.steps
        found: FloatArray = rounded * self.dense / (np.ceil(self.dense / self.steps - 1e-9) * self.steps)
        return np.concatenate([found, self.presence.extended(kept)[..., len(self.dense) :]], axis=-1)

    def features(self, kept: FloatArray) -> FloatArray:
        """What the coefficients multiply, (…, features), for kept widths (…, groups)."""
        left = self.effective(kept) @ self._slope.T + self._start
        left = np.concatenate([left, np.ones((*left.shape[:-1], 1))], axis=-1)  # the last, -1, never changes
        one, other = np.array(self._pairs).T
        found: FloatArray = left[..., one] * left[..., other]
        return found

    def quadratic(self, coefficients: FloatArray) -> Quadratic:
        """The sum of features times coefficients, as a polynomial of the effective widths."""
        start, slope = np.append(self._start, 1.0), np.vstack([self._slope, np.zeros(self._slope.shape[1])])
        one, other = np.array(self._pairs).T
        products = slope[one].T @ (coefficients[:, None] * slope[other])
        linear = (coefficients * start[one]) @ slope[other] + (coefficients * start[other]) @ slope[one]
        constant = float(coefficients @ (start[one] * start[other]))
        return Quadratic(constant=constant, linear=linear, products=(products + products.T) / 2)


@dataclass(frozen=True, kw_only=True, eq=False)
class LatencyModel:
    """The latency of any widths, as a share of the dense network's.

    Attributes:
        form: What was fitted.
        polynomial: Of the effective widths.
        timings: What it was fitted to.
        error: Mean relative error on timings that a fit to the others predicts; None where there are too few.
        whole: What it takes where all groups are whole: 1, but where the network was compressed before and shares are
            of its original.
    """

    form: LatencyForm
    polynomial: Quadratic
    timings: tuple[Timing, ...]
    error: float | None
    whole: float = 1.0

    def of(self, kept: FloatArray) -> float:
        """The share of the dense latency where group ``i`` keeps ``kept[i]`` units."""
        return self.polynomial.of(self.form.effective(kept))

    def tables(self, widths: Mapping[int, FloatArray], dense: FloatArray) -> Tables:
        """The same where some groups choose among ``widths`` and the others stay dense (see ``Price``)."""
        effective = {}
        for index, choices in widths.items():
            whole = np.repeat(dense[None], len(choices), axis=0)
            whole[:, index] = choices
            effective[index] = self.form.effective(whole)[:, index]
        entries = self.form.presence.entries(effective, len(dense))
        return self.polynomial.tables_of(entries, self.form.effective(dense))

    def measured(self, kept: FloatArray) -> float | None:
        """The share that was measured at exactly these widths; None where they were not timed."""
        return next((timing.share for timing in self.timings if np.array_equal(timing.kept, kept)), None)


def fit_latency(form: LatencyForm, timings: Sequence[Timing], whole: float = 1.0) -> LatencyModel:
    """Fit a form to timings.

    The strength of the ridge is the one whose fits to all timings but one predict that one best, over all of them.

    Args:
        form: Of the network's latency.
        timings: To fit to.
        whole: See ``LatencyModel``.
    """
    features = form.features(np.array([timing.kept for timing in timings]))
    shares = np.array([timing.share for timing in timings]) / whole
    weights = np.sqrt([timing.weight for timing in timings])
    errors = {ridge: _left_out(form, features, shares, weights, ridge) for ridge in _RIDGES} if len(timings) > 2 else {}
    ridge = min(errors, key=lambda candidate: errors[candidate], default=_RIDGES[-1])
    coefficients = _solve(form, features, shares, weights, ridge)
    return LatencyModel(
        form=form,
        polynomial=form.quadratic(whole * coefficients / float(form.features(form.dense) @ coefficients)),
        timings=tuple(timings),
        error=errors.get(ridge),
        whole=whole,
    )


def _solve(
    form: LatencyForm, features: FloatArray, shares: FloatArray, weights: FloatArray, ridge: float
) -> FloatArray:
    """The coefficients, (features,)."""
    from scipy.optimize import nnls  # slow to import

    scale = weights / shares
    matrix = [features * scale[:, None], _DENSE_WEIGHT * form.features(form.dense)[None]]
    matrix.append(np.sqrt(ridge) * np.eye(len(form.prior)))
    target = np.concatenate([shares * scale, [_DENSE_WEIGHT], np.sqrt(ridge) * form.prior])
    found: FloatArray = nnls(np.vstack(matrix), target, maxiter=_ITERATIONS * len(form.prior))[0]
    return found


def _left_out(form: LatencyForm, features: FloatArray, shares: FloatArray, weights: FloatArray, ridge: float) -> float:
    """Mean relative error of each timing, predicted by a fit to the others."""
    errors = []
    for number in range(len(shares)):
        others = np.arange(len(shares)) != number
        coefficients = _solve(form, features[others], shares[others], weights[others], ridge)
        errors.append(abs(features[number] @ coefficients / shares[number] - 1))
    return float(np.mean(errors))
