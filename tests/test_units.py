"""Numbers as people read them."""

from __future__ import annotations

import pytest

from pruneport.units import scaled


@pytest.mark.parametrize(
    ("number", "unit", "text"),
    [
        (0, "", "0"),
        (999, "", "999"),
        (999, "B", "999 B"),
        (1000, "", "1.00 k"),
        (4_089_184_256, "", "4.09 G"),
        (25_557_032, "B", "25.56 MB"),
        (2.5e12, "", "2.50 T"),
    ],
)
def test_counts_have_an_si_prefix(number: float, unit: str, text: str) -> None:
    assert scaled(number, unit).strip() == text


def test_the_digits_can_be_chosen() -> None:
    assert scaled(25_557_032, digits=".3g").strip() == "25.6 M"
