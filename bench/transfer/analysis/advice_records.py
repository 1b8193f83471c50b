"""What a study advises, typed, and as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pruneport.bench.transfer.analysis.law import Check
from pruneport.bench.transfer.analysis.records import figures_of

__all__ = ["Advice", "MeasuredBest", "WayAdvice"]


@dataclass(frozen=True, kw_only=True)
class MeasuredBest:
    """Errors by share of the MACs at the nearest budget that was run, and the share with the least."""

    budget: float
    kept: float
    errors: Mapping[float, float]


@dataclass(frozen=True, kw_only=True)
class WayAdvice:
    """What to keep by one way of pruning, and why.

    Attributes:
        kept: Share of the MACs.
        measured: None where no budget has two shares to compare.
        predicted: Errors by share, from the law.
        law: Its form; None where none could be fitted, for which ``no_law`` says why.
        check: How well the law predicts what it was not fitted on.
        extrapolated: Whether the budget lies outside those that were run.
    """

    scope: str
    recipe: str
    kept: float
    measured: MeasuredBest | None
    predicted: Mapping[float, float]
    law: str | None
    no_law: str
    check: Check | None
    expected_error: float
    extrapolated: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        measured = None
        if self.measured is not None:
            measured = asdict(self.measured) | {"errors": _by_share(self.measured.errors)}
        return {
            "scope": self.scope,
            "recipe": self.recipe,
            "kept": self.kept,
            "measured": measured,
            "predicted": _by_share(self.predicted),
            "law": self.law,
            **({"no_law": self.no_law} if self.check is None else figures_of(self.check)),
            "expected_error": self.expected_error,
            "extrapolated": self.extrapolated,
        }


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What to keep at a budget of training FLOPs: the best of all ways of pruning, and the others beside it."""

    budget: float
    network: str
    task: str | None
    advice: WayAdvice
    others: tuple[WayAdvice, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "budget": self.budget,
            "network": self.network,
            "task": self.task,
            "advice": self.advice.to_dict(),
            "others": [entry.to_dict() for entry in self.others],
        }


def _by_share(errors: Mapping[float, float]) -> dict[str, float]:
    return {f"{share:g}": error for share, error in sorted(errors.items())}
