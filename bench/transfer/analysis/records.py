"""What a study's summary says, typed, and as the plain data of summary.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pruneport.bench.transfer.analysis.law import Check

__all__ = [
    "AdviceAtBudget",
    "Area",
    "FailedTrial",
    "FittedForm",
    "FrontierPoint",
    "LawSummary",
    "LowBudget",
    "MeanCurve",
    "MeanPoint",
    "NetworkSummary",
    "ScopeComparison",
    "Summary",
    "TaskCurve",
    "TaskPoint",
    "TrialCounts",
    "figures_of",
]


@dataclass(frozen=True, kw_only=True)
class MeanPoint:
    """The mean error with one budget; ``spread`` is one standard deviation over seeds, None of a single seed."""

    budget: float
    error: float
    spread: float | None


@dataclass(frozen=True, kw_only=True)
class TaskPoint(MeanPoint):
    """The same of one task, with the number of seeds."""

    seeds: int


@dataclass(frozen=True, kw_only=True)
class TaskCurve:
    """Errors of one way of pruning on one task, by budget."""

    task: str
    scope: str
    recipe: str
    kept: float
    points: tuple[TaskPoint, ...]


@dataclass(frozen=True, kw_only=True)
class MeanCurve:
    """Mean errors of one way of pruning over all tasks, by budget.

    Attributes:
        crossing: Budget from which the dense network is better; None where that is within no two budgets.
    """

    scope: str
    recipe: str
    kept: float
    points: tuple[MeanPoint, ...]
    crossing: float | None


@dataclass(frozen=True, kw_only=True)
class FrontierPoint:
    """The least error that is reached with so many training FLOPs, and by which way of pruning."""

    flops: float
    error: float
    scope: str
    recipe: str
    kept: float


@dataclass(frozen=True, kw_only=True)
class Area:
    """Area under a curve, normalised to [0, 1]; ``task`` is empty for the mean over all tasks."""

    task: str
    scope: str
    recipe: str
    kept: float
    area: float


@dataclass(frozen=True, kw_only=True)
class LowBudget:
    """The best pruned network against the dense one at a low budget, over all tasks.

    Attributes:
        gain: Relative gain in accuracy; None where the dense network gets nothing right.
        deviation: Standard deviation of the difference; None where a task has one seed.
        claimed: Whether the gain is as large as arXiv 2304.13164 claims.
        beyond_spread: Whether it is so less the deviation, too.
    """

    budget: float
    scope: str
    recipe: str
    kept: float
    accuracy: float
    dense_accuracy: float
    gain: float | None
    deviation: float | None
    claimed: bool
    beyond_spread: bool | None


@dataclass(frozen=True, kw_only=True)
class FittedForm:
    """One fitted form of the law, with its checks; see ``law.Law`` and ``law.Check``."""

    form: str
    rms: float
    parameters: tuple[float, ...]
    error_rms: float | None
    regret: float | None
    budget_regret: float | None
    dense_regret: float | None


@dataclass(frozen=True, kw_only=True)
class AdviceAtBudget:
    """The share of the MACs to keep at a budget: the best measured, and the law's; None where there is none."""

    budget: float
    measured: float | None
    law: float | None


@dataclass(frozen=True, kw_only=True)
class LawSummary:
    """The law of one way of pruning.

    Attributes:
        forms: Those that could be fitted.
        chosen: The form that advises; None where none could be fitted, for which ``error`` says why.
    """

    scope: str
    recipe: str
    forms: tuple[FittedForm, ...]
    chosen: str | None
    error: str | None
    advice: tuple[AdviceAtBudget, ...]


@dataclass(frozen=True, kw_only=True)
class ScopeComparison:
    """Mean errors of the scopes filters and channels at equal MACs, over tasks and the budgets that both have."""

    kept: float
    recipe: str
    budgets: int
    filters: float
    channels: float
    deviation: float | None


@dataclass(frozen=True, kw_only=True)
class NetworkSummary:
    """All that a study says of one network.

    Attributes:
        dense: Whether the dense network has results on every task.
        stream: The curves of the mean over the tasks.
        frontier: By task.
    """

    name: str
    tasks: tuple[str, ...]
    dense: bool
    curves: tuple[TaskCurve, ...]
    stream: tuple[MeanCurve, ...]
    frontier: Mapping[str, tuple[FrontierPoint, ...]]
    areas: tuple[Area, ...]
    low_budgets: tuple[LowBudget, ...]
    laws: tuple[LawSummary, ...]
    scopes: tuple[ScopeComparison, ...]


@dataclass(frozen=True, kw_only=True)
class FailedTrial:
    """A trial, as JSON, and what went wrong."""

    trial: str
    error: str


@dataclass(frozen=True, kw_only=True)
class TrialCounts:
    """How far the study is, and what its trials took."""

    wanted: int
    done: int
    failed: tuple[FailedTrial, ...]
    wall_s: float


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Everything that a study answers, as far as it has run.

    Attributes:
        versions: Of libraries, where the study was summarised, which need not be where its trials ran.
        device: The same of the machine.
    """

    format_version: int = 1
    trials: TrialCounts
    networks: tuple[NetworkSummary, ...]
    versions: Mapping[str, str]
    device: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The content of summary.json."""
        plain = asdict(self)
        for network in plain["networks"]:
            for law in network["laws"]:
                del law["error" if law["error"] is None else "chosen"]
        return plain


def figures_of(check: Check) -> dict[str, float | None]:
    """The figures of a check by name."""
    return {
        "error_rms": check.error_rms,
        "regret": check.regret,
        "budget_regret": check.budget_regret,
        "dense_regret": check.dense_regret,
    }
