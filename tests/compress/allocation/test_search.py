"""Allocation: bounds, multiples, targets, and a reason wherever a group is not what was asked."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruneport.compress.allocation.cost import Cost
from pruneport.compress.allocation.cost_model import CostModel
from pruneport.compress.allocation.search import Allocation, allocate, target_of, why_dense
from pruneport.compress.graph.groups import Group, Role
from pruneport.compress.graph.widths import choose_units
from pruneport.compress.options import PruneOptions
from pruneport.errors import PruningError, TargetError


class ChainCost(CostModel):
    """Cost of a chain of layers, each as wide as its group: what a plain network of convolutions costs."""

    def __init__(self, widths: list[int], areas: list[int]) -> None:
        self.areas = np.array(areas, dtype=np.float64)
        full = np.array(widths, dtype=np.float64)
        self.dense = Cost(macs=round(self.macs(full)), params=round(self.params(full)))

    def params(self, kept: np.ndarray) -> float:
        return float(np.sum(np.append(3.0, kept) * np.append(kept, 5.0)) * 9)

    def macs(self, kept: np.ndarray) -> float:
        return float(np.sum(np.append(3.0, kept) * np.append(kept, 5.0) * self.areas) * 9)


def group(width: int, name: str = "layer", blocks: int = 1, role: Role = "filters", reason: str = "") -> Group:
    return Group(name=name, width=width, members=(), role=role, blocks=blocks, reason=reason)


def run(
    widths: list[int], options: PruneOptions, blocks: list[int] | None = None, seed: int = 0
) -> tuple[Allocation, ChainCost, list[Group]]:
    generator = np.random.default_rng(seed)
    groups = [group(width, f"layer{i}", (blocks or [1] * len(widths))[i]) for i, width in enumerate(widths)]
    scores = [generator.random(width) for width in widths]
    cost = ChainCost(widths, [2 ** (len(widths) - i) for i in range(len(widths) + 1)])
    reasons = [why_dense(one, options) for one in groups]
    return allocate(groups, scores, cost, options, reasons), cost, groups


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


@pytest.mark.parametrize(("round_to", "advised"), [(1, False), (4, True)])
def test_the_note_advises_only_what_can_be_done(round_to: int, advised: bool) -> None:
    allocation, _, _ = run([4 * round_to], PruneOptions(flops=0.6, round_to=round_to))
    assert allocation.note is not None
    assert ("a smaller `round_to`" in allocation.note) is advised


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


@pytest.mark.parametrize(
    ("given_options", "message"),
    [
        ({}, "exactly one of `flops`, `params` and `ratio` is needed; given: none"),
        ({"flops": 0.5, "ratio": 0.5}, "given: `flops` and `ratio`"),
        ({"flops": 0.5, "params": 0.5, "ratio": 0.5}, "given: `flops` and `params` and `ratio`"),
        ({"flops": 0.0}, "`flops` is 0; expected a share of dense to keep between 0 and 1"),
        ({"flops": 1.0}, r"`flops` is 1; expected a share of dense to keep between 0 and 1, such as 0\.5\.$"),
        ({"ratio": 1.0}, "`ratio` is 1; expected a share of filters to remove between 0 and 1"),
        ({"params": 50.0}, r"`params` is 50; .* Did you mean 0\.5\?"),
        ({"flops": -0.5}, r"`flops` is -0\.5; expected"),
        ({"flops": float("nan")}, "`flops` is nan; expected"),
        ({"flops": float("inf")}, "`flops` is inf; expected"),
        ({"flops": 0.5, "round_to": 0}, "`round_to` is 0; expected a whole number of at least 1"),
        ({"flops": 0.5, "max_pruning_ratio": 1.0}, "`max_pruning_ratio` is 1; expected a share between 0 and 1"),
        ({"flops": 0.5, "max_pruning_ratio": float("nan")}, "`max_pruning_ratio` is nan"),
    ],
)
def test_targets_that_are_none(given_options: dict[str, Any], message: str) -> None:
    with pytest.raises(TargetError, match=message):
        target_of(PruneOptions(**given_options))


def test_a_target_out_of_reach_says_the_lowest() -> None:
    options = PruneOptions(params=0.05, max_pruning_ratio=0.5)
    lowest = ChainCost([16, 32], [1] * 3)
    share = lowest.params(np.array([8.0, 16.0])) / lowest.dense.params
    with pytest.raises(
        TargetError, match=rf"`params=0\.05` cannot be reached: .* the lowest is {share:.4f} of dense"
    ) as e:
        run([16, 32], options)
    for hint in ("`round_to` than 8", "`max_pruning_ratio` than 0.5"):
        assert hint in str(e.value)
    assert "`scope" not in str(e.value), "it was not tried"


@pytest.mark.parametrize("ranking", ["uniform", "global", "isomorphic", "sensitivity"])
def test_a_ratio_out_of_reach_says_the_largest(ranking: Any) -> None:
    options = PruneOptions(ratio=0.95, round_to=1, ranking=ranking)
    said = r"`ratio=0\.95` cannot be reached: .* at most 0\.9000 of the prunable filters can be removed"
    with pytest.raises(TargetError, match=said) as caught:
        run([20, 40], options)
    assert str(caught.value).endswith("What helps: a larger `max_pruning_ratio` than 0.9.")


def test_a_ratio_that_was_missed_is_noted() -> None:
    allocation, _, _ = run([16, 16], PruneOptions(ratio=0.3, ranking="uniform"))
    assert allocation.kept == (8, 8)
    assert allocation.note == (
        "asked to remove 0.3 of the prunable filters, removed 0.5000: widths are multiples of 8, and no group loses "
        "more than 0.9."
    )


def test_nothing_prunable_lists_every_reason() -> None:
    options = PruneOptions(flops=0.5)
    groups = [
        group(7, "small"),
        group(64, "stream", role="stream"),
        group(64, "features", role="representation"),
        group(10, "head", role="output"),
        group(64, "odd", reason="odd is a Mystery, which cannot be resized"),
    ]
    reasons = [why_dense(one, options) for one in groups] + ["kept by `keep` 'x*'"]
    groups.append(group(64, "kept"))
    cost = ChainCost([one.width for one in groups], [1] * 7)
    with pytest.raises(PruningError, match="nothing can be pruned with these options:") as caught:
        allocate(groups, [np.ones(one.width) for one in groups], cost, options, reasons)
    assert str(caught.value).splitlines()[1:] == [
        "  small (7): its width 7 leaves no smaller multiple of 8 within `max_pruning_ratio`",
        "  stream (64): a residual stream, outside `scope=filters`",
        "  features (64): the representation (the output layer's input) keeps its width",
        "  head (10): the network's outputs always stay",
        "  odd (64): odd is a Mystery, which cannot be resized",
        "  kept (64): kept by `keep` 'x*'",
        "`scope=channels` prunes residual streams too.",
        "`prune_representation` prunes the output layer's input too.",
    ]


def test_scope_channels_frees_streams_but_not_the_representation() -> None:
    options = PruneOptions(flops=0.5, scope="channels")
    assert why_dense(group(64, role="stream"), options) == ""
    assert "representation" in why_dense(group(64, role="representation"), options)
    assert why_dense(group(64, role="stream"), options, "layer*") == "kept by `keep` layer*"


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
