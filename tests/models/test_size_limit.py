"""A factory may not allocate more than was expected, and is stopped before it does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pruneport.errors import SourceError
from pruneport.models.size_limit import SizeLimit


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(10**6, 10**6),
        lambda: nn.Embedding(10**12, 4),
        lambda: [nn.Linear(30, 30) for _ in range(10**6)],
        lambda: torch.linspace(0, 1, 10**11),
        lambda: torch.randn(10**6, 10**5, generator=torch.Generator()),
        lambda: torch.arange(10**12),
    ],
)
def test_what_is_too_large_is_refused(make: object) -> None:
    assert callable(make)
    with SizeLimit(10_000), pytest.raises(SourceError, match="far larger than the weights are of: over 10000 numbers"):
        make()


def test_within_the_limit_nothing_changes() -> None:
    torch.manual_seed(3)
    plain = nn.Linear(9, 9)
    torch.manual_seed(3)
    with SizeLimit(90):
        limited = nn.Linear(9, 9)
    assert torch.equal(plain.weight, limited.weight)
    assert torch.equal(plain.bias, limited.bias)
