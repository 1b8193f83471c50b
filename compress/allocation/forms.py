"""Costs as functions of the widths that the groups keep: polynomials, tables for the solver, shares of layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from pruneport.arrays import FloatArray

__all__ = ["LayerShares", "Presence", "Price", "Quadratic", "Tables", "WithPresence"]

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
        return self.tables_of({index: {index: choices} for index, choices in widths.items()}, dense)

    def tables_of(self, values: Mapping[int, Mapping[int, FloatArray]], dense: FloatArray) -> Tables:
        """The same where a choice of a group decides several entries of k.

        Args:
            values: Group -> entry of k -> its value for each choice, (choices,). No two groups decide one entry.
            dense: All entries where nothing is removed.
        """
        fixed = dense.copy()
        fixed[[entry for entries in values.values() for entry in entries]] = 0
        linear = self.linear + 2 * self.products @ fixed
        least = _NEGLIGIBLE * abs(self.of(dense))

        def product(one: int, other: int) -> FloatArray | None:
            """What depends on the choices of both groups."""
            parts = [
                2 * self.products[first, second] * np.outer(choices, others)
                for first, choices in values[one].items()
                for second, others in values[other].items()
                if abs(self.products[first, second]) * dense[first] * dense[second] > least
            ]
            return sum(parts[1:], parts[0]) if parts else None

        pairs = {(one, other): product(one, other) for one in values for other in values if one < other}
        return Tables(
            constant=float(self.constant + self.linear @ fixed + fixed @ self.products @ fixed),
            single={
                index: sum(
                    (linear[first] * choices for first, choices in entries.items()),
                    sum(
                        self.products[first, second] * choices * others
                        for first, choices in entries.items()
                        for second, others in entries.items()
                    ),
                )
                for index, entries in values.items()
            },
            pairs={key: table for key, table in pairs.items() if table is not None},
        )


@dataclass(frozen=True)
class Presence:
    """Which branches there are, beside the widths: each is there while one of its groups keeps a unit.

    Attributes:
        owners: For each branch that may be dropped, a group that lives in it alone.
    """

    owners: tuple[int, ...] = ()

    def extended(self, kept: FloatArray) -> FloatArray:
        """Kept widths (…, groups), and behind them 1 for each branch that is there, else 0."""
        if not self.owners:
            return kept
        return np.concatenate([kept, (kept[..., list(self.owners)] > 0).astype(np.float64)], axis=-1)

    def entries(self, widths: Mapping[int, FloatArray], groups: int) -> dict[int, dict[int, FloatArray]]:
        """What the choices of each group decide, as ``Quadratic.tables_of`` takes it."""
        decided = {index: {index: choices} for index, choices in widths.items()}
        for number, owner in enumerate(self.owners):
            if owner in decided:
                decided[owner][groups + number] = (widths[owner] > 0).astype(np.float64)
        return decided


@dataclass(frozen=True)
class WithPresence:
    """A cost as a polynomial of the kept widths, and of which branches are there."""

    polynomial: Quadratic
    presence: Presence

    def of(self, kept: FloatArray) -> float:
        """The cost where group ``i`` keeps ``kept[i]`` units."""
        return self.polynomial.of(self.presence.extended(kept))

    def tables(self, widths: Mapping[int, FloatArray], dense: FloatArray) -> Tables:
        """The same where some groups choose among ``widths`` and the others stay dense."""
        entries = self.presence.entries(widths, len(dense))
        return self.polynomial.tables_of(entries, self.presence.extended(dense))


@dataclass(frozen=True, kw_only=True)
class LayerShares:
    """The multiply-accumulates of each layer, with what is left of the one or two sizes that they are proportional to.

    Attributes:
        macs: Of the dense layer, (layers,).
        first: Index of one of its sizes, (layers,).
        second: Index of the other, (layers,); where there is none, that of a size that never changes.
        start: What is left of each size where no group keeps a unit, (sizes,).
        slope: How much more is left of it with each unit of each group, and with each branch, (sizes, groups and
            branches).
        presence: Which branches there are.
        branches: For each branch, the size that is 1 where it is there, else 0.
    """

    macs: FloatArray
    first: Any
    second: Any
    start: FloatArray
    slope: FloatArray
    presence: Presence = Presence()
    branches: tuple[int, ...] = ()
