"""Allocation: bounds, multiples, targets, and a reason wherever a group is not what was asked."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from chains import ChainCost, group, run
from hypothesis import given, settings
from hypothesis import strategies as st

from pruneport.compress.allocation.search import allocate
from pruneport.compress.allocation.target import target_of
from pruneport.compress.graph.widths import choose_units
from pruneport.compress.options import PruneOptions
from pruneport.errors import PruningError, TargetError


def allowed(width: int, blocks: int, options: PruneOptions) -> list[int]:
    """By the words of the options: multiples of the step that leave enough, and the dense width."""
    step = math.lcm(options.round_to, blocks)
    least = width * (1 - options.max_pruning_ratio)
    return [kept for kept in range(1, width) if kept % step == 0 and kept >= least - 1e-9] + [width]


CASES = st.fixed_dictionaries(
    {
        "widths": st.lists(st.integers(1, 24), min_size=1, max_size=4),
        "round_to": st.sampled_from([1, 2, 4, 8]),
        "ranking": st.sampled_from(["uniform", "global", "isomorphic"]),
        "max_pruning_ratio": st.sampled_from([0.5, 0.75, 0.9]),
        "target": st.sampled_from(["flops", "params", "ratio"]),
        "value": st.floats(0.05, 0.95),
        "grouped": st.booleans(),
        "seed": st.integers(0, 99),
    }
)


@given(case=CASES)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_every_allocation(case: dict[str, Any]) -> None:
    widths = case["widths"]
    blocks = [2 if case["grouped"] and width % 2 == 0 else 1 for width in widths]
    options = PruneOptions(
        **{case["target"]: case["value"]},
        round_to=case["round_to"],
        ranking=case["ranking"],
        max_pruning_ratio=case["max_pruning_ratio"],
    )
    choices = [allowed(width, count, options) for width, count in zip(widths, blocks, strict=True)]
    name, value = target_of(options)
    cost = ChainCost(widths, [2 ** (len(widths) - i) for i in range(len(widths) + 1)])
    free = [index for index, choice in enumerate(choices) if len(choice) > 1]

    def share(kept: Any) -> float:
        """What is kept of dense; for a ratio, of the filters that may go."""
        if name == "ratio":
            return sum(kept[index] for index in free) / max(1, sum(widths[index] for index in free))
        measure, dense = (cost.macs, cost.dense.macs) if name == "flops" else (cost.params, cost.dense.params)
        return measure(np.array(kept, dtype=np.float64)) / dense

    target = 1 - value if name == "ratio" else value
    lowest = min(share(kept) for kept in itertools.product(*choices))
    if all(len(choice) == 1 for choice in choices):
        with pytest.raises(PruningError, match="nothing can be pruned"):
            run(widths, options, blocks, case["seed"])
        return
    if lowest > target + 0.01:
        said = f"at most {1 - lowest:.4f} of the" if name == "ratio" else f"the lowest is {lowest:.4f} of dense"
        with pytest.raises(TargetError, match=f"`{name}={value:g}` cannot be reached: .* {said}"):
            run(widths, options, blocks, case["seed"])
        return
    allocation, _, groups = run(widths, options, blocks, case["seed"])
    for kept, choice, asked, reason, one in zip(
        allocation.kept, choices, allocation.asked, allocation.reasons, groups, strict=True
    ):
        assert kept in choice
        assert reason or round(asked) == kept, one
        assert len(choice) > 1 or "leaves no smaller multiple" in reason
    reached = share(allocation.kept)
    if abs(reached - target) <= 0.01:
        assert allocation.note is None
    else:
        said = f"asked for {value:.4g} of the dense {name}, reached {reached:.4f}"
        if name == "ratio":
            said = f"asked to remove {value:.4g} of the prunable filters, removed {1 - reached:.4f}"
        assert said in (allocation.note or "")


@given(
    widths=st.lists(st.integers(12, 40), min_size=4, max_size=7),
    value=st.floats(0.15, 0.97),
    ranking=st.sampled_from(["uniform", "global", "isomorphic"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=80, deadline=None, derandomize=True)
def test_the_target_is_met_where_widths_are_free(widths: list[int], value: float, ranking: Any, seed: int) -> None:
    allocation, cost, _ = run(widths, PruneOptions(flops=value, round_to=1, ranking=ranking), seed=seed)
    assert abs(cost.macs(np.array(allocation.kept, dtype=np.float64)) / cost.dense.macs - value) <= 0.01
    assert allocation.note is None


def test_the_target_is_met_within_one_percent_on_a_usual_network() -> None:
    missed = 0
    for seed, value in itertools.product(range(5), np.arange(0.2, 0.95, 0.05)):
        for ranking in ("uniform", "global"):
            options = PruneOptions(flops=float(value), ranking=ranking)  # type: ignore[arg-type]
            allocation, cost, _ = run([32, 64, 64, 128, 128, 256], options, seed=seed)
            reached = cost.macs(np.array(allocation.kept, dtype=np.float64)) / cost.dense.macs
            missed += abs(reached - value) > 0.01
    assert missed == 0


@given(
    seed=st.integers(0, 50),
    ranking=st.sampled_from(["uniform", "global", "isomorphic"]),
    target=st.sampled_from(["flops", "params"]),
)
@settings(max_examples=15, deadline=None, derandomize=True)
def test_a_lower_target_costs_no_more(seed: int, ranking: Any, target: str) -> None:
    reached = []
    for value in np.linspace(0.1, 0.9, 9):
        options = PruneOptions(**{target: float(value)}, round_to=2, ranking=ranking)  # type: ignore[arg-type]
        allocation, cost, _ = run([16, 24, 32, 16], options, seed=seed)
        measure = cost.macs if target == "flops" else cost.params
        reached.append(measure(np.array(allocation.kept, dtype=np.float64)))
    assert reached == sorted(reached)


def test_ratio_removes_that_share_of_filters() -> None:
    allocation, _, _ = run([16, 32, 64], PruneOptions(ratio=0.25, round_to=1))
    assert allocation.kept == (12, 24, 48)
    allocation, _, _ = run([16, 32, 64], PruneOptions(ratio=0.25, round_to=1, ranking="global"))
    assert sum(allocation.kept) == 84


def test_global_ranking_removes_the_lowest_scores() -> None:
    groups = [group(4, "low"), group(4, "high")]
    scores = [np.array([0.1, 0.2, 0.3, 2.0]), np.array([1.0, 1.1, 0.25, 1.3])]
    options = PruneOptions(ratio=0.5, round_to=1, ranking="global")
    allocation = allocate(groups, scores, ChainCost([4, 4], [1, 1, 1]), options, ["", ""])
    assert allocation.kept == (1, 3)


def test_dense_groups_stay_and_keep_their_reason() -> None:
    groups = [group(16), group(16), group(16)]
    options = PruneOptions(flops=0.7, round_to=4)
    cost = ChainCost([16] * 3, [1] * 4)
    allocation = allocate(groups, [np.ones(16)] * 3, cost, options, ["", "kept by someone", ""])
    assert allocation.kept[1] == allocation.asked[1] == 16
    assert allocation.reasons[1] == "kept by someone"
    assert allocation.kept[0] + allocation.kept[2] < 32


@given(runs=st.integers(1, 4), length=st.integers(1, 8), data=st.data(), seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_chosen_units_are_the_best_of_every_block(runs: int, length: int, data: Any, seed: int) -> None:
    width = runs * length
    scores = np.random.default_rng(seed).integers(0, 4, width).astype(np.float64)
    count = data.draw(st.integers(1, length)) * runs
    chosen = choose_units(group(width, blocks=runs), scores, count)
    assert list(chosen) == sorted(set(chosen))
    assert len(chosen) == count
    for start in range(0, width, length):
        block = range(start, start + length)
        inside = [unit for unit in chosen if unit in block]
        outside = [unit for unit in block if unit not in chosen]
        assert len(inside) == count // runs
        assert not outside or min(scores[inside]) >= max(scores[outside])
