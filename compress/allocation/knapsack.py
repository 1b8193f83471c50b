"""The knapsack: the widths of all groups whose summed damage is least among those that meet the target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from pruneport.arrays import FloatArray
from pruneport.compress.allocation.forms import Price
from pruneport.errors import PruningError

__all__ = ["solve_knapsack"]

_SECONDS = 60
_GAP = 1e-3


def solve_knapsack(
    widths: Mapping[int, FloatArray],
    damage: Mapping[int, FloatArray],
    cost: Price,
    dense: FloatArray,
    limit: float,
    together: Sequence[Sequence[int]] = (),
) -> FloatArray:
    """Choose one width a group with HiGHS, to proven optimality within 0.1 %.

    A layer's cost depends on the widths of at most two groups; each pair of their choices is one more variable, tied to
    both by their sums (the transport polytope, which is tight for a chain of pairs), and may cost anything.

    Args:
        widths: The widths each free group may have, (options,) each.
        damage: What each of them costs in accuracy, (options,) each.
        cost: Its tables are read.
        dense: Dense widths of all groups, (groups,).
        limit: Cost that may not be exceeded.
        together: Groups that go as a whole or not at all: all of them have their first width, or none has.

    Returns:
        Widths of all groups, (groups,).

    Raises:
        PruningError: The solver found no allocation in a minute.
    """
    start, variables = {}, 0
    for index, options in widths.items():
        start[index] = variables
        variables += len(options)
    tables = cost.tables(widths, dense)
    pair_start, total = {}, variables
    for one, other in tables.pairs:
        pair_start[one, other] = total
        total += len(widths[one]) * len(widths[other])

    objective, price = np.zeros(total), np.zeros(total)
    rows: list[tuple[Any, FloatArray]] = []  # columns and coefficients
    right: list[float] = []
    for index, options in widths.items():
        columns = np.arange(start[index], start[index] + len(options))
        objective[columns] = damage[index]
        price[columns] = tables.single[index]
        rows.append((columns, np.ones(len(columns))))
        right.append(1.0)
    for (one, other), prices in tables.pairs.items():
        first = pair_start[one, other]
        ways = np.arange(first, first + len(widths[one]) * len(widths[other])).reshape(len(widths[one]), -1)
        price[ways] = prices
        for index, table in ((one, ways), (other, ways.T)):
            for option, ways_with in enumerate(table):
                rows.append((np.append(ways_with, start[index] + option), np.append(np.ones(len(ways_with)), -1.0)))
                right.append(0.0)
    for owner, *others in together:
        for other in others:
            rows.append((np.array([start[owner], start[other]]), np.array([1.0, -1.0])))
            right.append(0.0)
    numbers = np.repeat(np.arange(len(rows)), [len(row) for row, _ in rows])
    where, values = (np.concatenate(side) for side in zip(*rows, strict=True))
    equal = coo_array((values, (numbers, where)), shape=(len(rows), total)).tocsr()
    integral = np.zeros(total)
    integral[:variables] = 1
    scale = max(1e-30, float(objective.max()))
    answer = milp(
        objective / scale,
        integrality=integral,
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(equal, right, right),
            LinearConstraint(price[None] / limit, -np.inf, 1 - tables.constant / limit),
        ],
        options={"time_limit": _SECONDS, "mip_rel_gap": _GAP},
    )
    if answer.x is None:
        raise PruningError(
            f"the solver found no widths for the target in {_SECONDS} s ({answer.message}); choose `ranking=uniform`."
        )
    chosen = dense.copy()
    for index, options in widths.items():
        chosen[index] = options[answer.x[start[index] : start[index] + len(options)].argmax()]
    return chosen
