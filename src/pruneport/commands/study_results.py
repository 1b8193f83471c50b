"""What the verbs return that make many networks: typed, and as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pruneport.bench.sweep.records import Point, RuleName, Sweep
from pruneport.bench.transfer.analysis.advice_records import Advice
from pruneport.bench.transfer.analysis.records import Summary
from pruneport.errors import SweepError

__all__ = ["AdviceResult", "SweepResult", "TransferResult"]


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """A sweep's folder, and what it found: the content of sweep.json."""

    folder: Path
    sweep: Sweep

    @property
    def points(self) -> tuple[Point, ...]:
        """Every target with what was measured, from the least to the most that goes."""
        return self.sweep.points

    @property
    def report(self) -> Path:
        """The page to open or to send."""
        return self.folder / "report.html"

    def bundle(self, rule: RuleName) -> Path | None:
        """The folder of the network that was picked by ``max_drop`` or ``min_speedup``; None where there is none."""
        named = [pick.point for pick in self.sweep.picks if pick.limit.rule == rule]
        return self.folder / named[0] if named and named[0] else None

    def check(self) -> None:
        """Raise where not all went well.

        Raises:
            SweepError: Points could not be reached or failed a check, or no network is within a limit; names them all.
        """
        faults = [f"{point.name}: {point.fault}" for point in self.points if point.fault]
        faults += [pick.said for pick in self.sweep.picks if pick.point is None]
        if faults:
            raise SweepError(f"{' '.join(faults)} The others are done; the report is {self.report}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"folder": str(self.folder), "report": str(self.report), **self.sweep.to_dict()}


@dataclass(frozen=True, kw_only=True)
class TransferResult:
    """A study's folder and what it says so far: the content of summary.json."""

    folder: Path
    summary: Summary

    @property
    def report(self) -> Path:
        """The page to open."""
        return self.folder / "report.html"

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"folder": str(self.folder), "report": str(self.report), **self.summary.to_dict()}


@dataclass(frozen=True, kw_only=True)
class AdviceResult:
    """What to keep at a budget, with the evidence."""

    advice: Advice

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return self.advice.to_dict()
