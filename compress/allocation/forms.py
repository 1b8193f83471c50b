"""Costs as functions of the widths that the groups keep: polynomials, tables for the solver, shares of layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from pruneport.arrays import FloatArray

__all__ = ["LayerShares", "Price", "Quadratic", "Tables"]

_NEGLIGIBLE = 1e-9  # of the dense cost


@dataclass(frozen=True, kw_only=True)
class Tables:
    """A cost by choices: a constant, a number for each choice of a group, and one for each pair of choices of two.

    Attributes:
        constant: What does not depend on any choice.
        single: (choices,) by group.
        pairs: (choices of one, choices of the other) by two groups, the lower first.
    """

    constant: float
    single: Mapping[int, FloatArray]
    pairs: Mapping[tuple[int, int], FloatArray]


class Price(Protocol):
    """What the knapsack may not exceed."""

    def of(self, kept: FloatArray) -> float:
        """The cost where group ``i`` keeps ``kept[i]`` units."""

    def tables(self, widths: Mapping[int, FloatArray], dense: FloatArray) -> Tables:
        """The same where some groups choose among ``widths`` and the others stay dense."""


@dataclass(frozen=True)
class Quadratic:
    """A cost as a polynomial of the kept widths k: constant + linear'k + k' products k, products symmetric."""

    constant: float
    linear: FloatArray
    products: FloatArray

    def of(self, kept: FloatArray) -> float:
        """The cost where group ``i`` keeps ``kept[i]`` units."""
        return float(self.constant + self.linear @ kept + kept @ self.products @ kept)

    def tables(self, widths: Mapping[int, FloatArray], dense: FloatArray) -> Tables:
        """The same where some groups choose among ``widths`` and the others stay dense."""
        fixed = dense.copy()
        fixed[list(widths)] = 0
        linear = self.linear + 2 * self.products @ fixed
        least = _NEGLIGIBLE * abs(self.of(dense))
        return Tables(
            constant=float(self.constant + self.linear @ fixed + fixed @ self.products @ fixed),
            single={
                index: linear[index] * choices + self.products[index, index] * choices**2
                for index, choices in widths.items()
            },
            pairs={
                (one, other): 2 * self.products[one, other] * np.outer(widths[one], widths[other])
                for one in widths
                for other in widths
                if one < other and abs(self.products[one, other]) * dense[one] * dense[other] > least
            },
        )


@dataclass(frozen=True, kw_only=True)
class LayerShares:
    """The multiply-accumulates of each layer, with what is left of the one or two sizes that they are proportional to.

    Attributes:
        macs: Of the dense layer, (layers,).
        first: Index of one of its sizes, (layers,).
        second: Index of the other, (layers,); where there is none, that of a size that never changes.
        start: What is left of each size where no group keeps a unit, (sizes,).
        slope: How much more is left of it with each unit of each group, (sizes, groups).
    """

    macs: FloatArray
    first: Any
    second: Any
    start: FloatArray
    slope: FloatArray
