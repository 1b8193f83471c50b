"""The table: what is not in it holds its channels, and what makes values anew or only reads them."""

from __future__ import annotations

from typing import Any

import torch
from channel_names import A


def test_an_operator_that_is_not_known_holds_its_channels(follow: Any) -> None:
    found = follow(lambda n, x: torch.cholesky_inverse(n.a(x)[:, :, :4, :4].flatten(0, 1)))
    reason = "the network calls aten.cholesky_inverse.default, which is not known"
    assert found.unprunable == dict.fromkeys(A, reason)
    assert found.hidden == set(A)


def test_values_that_are_made_anew_do_not_depend_on_channels(follow: Any) -> None:
    shaped = follow(lambda n, x: torch.zeros_like(n.a(x)))
    assert shaped.along(1) == A, "they have the shape of what has them"
    assert follow(lambda n, x: torch.zeros(n.a(x).shape)).hidden == set()


def test_what_only_reads_channels_depends_on_all_of_them(follow: Any) -> None:
    found = follow(lambda n, x: (n.a(x) > 0).nonzero())
    assert found.along(1) is None
    assert found.hidden == set(A)


def test_tensors_of_no_entries_hold_nothing(follow: Any) -> None:
    found = follow(lambda n, x: torch.cholesky_inverse(n.a(x)[:0, :, :4, :4].flatten(0, 1)))
    assert found.unprunable == {}
