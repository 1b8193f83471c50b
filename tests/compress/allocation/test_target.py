"""Targets: those that are none, and what is said where one cannot be met."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from chains import ChainCost, group, run

from pruneport.compress.allocation.search import allocate
from pruneport.compress.allocation.target import target_of, why_dense
from pruneport.compress.options import PruneOptions
from pruneport.errors import PruningError, TargetError


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


@pytest.mark.parametrize(("round_to", "advised"), [(1, False), (4, True)])
def test_the_note_advises_only_what_can_be_done(round_to: int, advised: bool) -> None:
    allocation, _, _ = run([4 * round_to], PruneOptions(flops=0.6, round_to=round_to))
    assert allocation.note is not None
    assert ("a smaller `round_to`" in allocation.note) is advised


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
