"""What the verbs return that make or look at one network: typed, and as plain data, with Python's names of options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from pruneport.bench.latency.records import Measured
from pruneport.bench.timings.table import LatencyTable
from pruneport.compress.allocation.cost import Cost
from pruneport.compress.finetune.state import Event
from pruneport.compress.group_records import scope_in_files
from pruneport.compress.records import Trained
from pruneport.compress.surgery.plan import Plan
from pruneport.export.accuracy import Accuracy
from pruneport.export.verification import Verification

if TYPE_CHECKING:
    from pruneport.compress.assessment import GroupView

__all__ = [
    "BenchResult",
    "CompressResult",
    "ExportResult",
    "FinetuneResult",
    "InspectResult",
    "LatencyResult",
    "PushResult",
    "ShipResult",
    "VerifyResult",
]


@dataclass(frozen=True, kw_only=True)
class InspectResult:
    """The network's groups in a scope, and its dense cost; where sensitivities were measured, the file of the plot."""

    source: str
    dense: Cost
    groups: tuple[GroupView, ...]
    scope: str
    plot: Path | None = None
    members: bool = False
    graph: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "source": self.source,
            "macs": self.dense.macs,
            "params": self.dense.params,
            "scope": self.scope,
            "groups": [
                {
                    "name": view.group.name,
                    "width": view.group.width,
                    "heads": view.group.whole_attention_heads,
                    "scope": scope_in_files(view.group.role),
                    "macs": view.cost.macs,
                    "params": view.cost.params,
                    "prunable": not view.reason,
                    "why_not": view.reason,
                    "branch": view.branch or None,
                    "members": [f"{member.module} ({member.axis})" for member in view.group.members],
                    "sensitivity": None if view.curve is None else view.curve.to_dict(),
                }
                for view in self.groups
            ],
            "plot": None if self.plot is None else str(self.plot),
        }


@dataclass(frozen=True, kw_only=True)
class CompressResult:
    """The bundle's folder and plan."""

    folder: Path
    plan: Plan
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        plan = self.plan
        return {
            "folder": str(self.folder),
            "macs": {"dense": plan.dense.macs, "pruned": plan.pruned.macs},
            "params": {"dense": plan.dense.params, "pruned": plan.pruned.params},
            **latency_to_dict(plan),
            **({"branches": [asdict(branch) for branch in plan.branches]} if plan.branches else {}),
            "note": plan.note,
            "warnings": list(self.warnings),
            "groups": [
                {"name": g.name, "width": g.width, "asked": g.asked, "kept": g.kept_width, "reason": g.reason}
                for g in plan.groups
            ],
        }


def latency_to_dict(plan: Plan) -> dict[str, Any]:
    """How a latency target was met, where there was one."""
    return {} if plan.latency is None else {"latency": asdict(plan.latency) | {"kept": plan.latency_kept}}


@dataclass(frozen=True, kw_only=True)
class LatencyResult:
    """A table of timings, and its file."""

    file: Path
    table: LatencyTable

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"file": str(self.file), **asdict(self.table)}


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """The ONNX files written, with their size in bytes."""

    folder: Path
    files: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"folder": str(self.folder), "files": dict(self.files)}


@dataclass(frozen=True, kw_only=True)
class VerifyResult:
    """What was checked, and whether the bundle holds it: one that cannot be written is checked all the same."""

    folder: Path
    verification: Verification
    warnings: tuple[str, ...] = ()
    recorded: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "folder": str(self.folder),
            **self.verification.to_dict(),
            "warnings": list(self.warnings),
            "recorded": self.recorded,
        }


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """What was measured: the content of bench.json."""

    folder: Path
    bench: Measured
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"folder": str(self.folder), **self.bench.to_dict(), "warnings": list(self.warnings)}


@dataclass(frozen=True, kw_only=True)
class ShipResult:
    """The finished bundle, and the pruned network in memory: in eval mode, on the CPU."""

    folder: Path
    plan: Plan
    verification: Verification
    bench: Measured
    warnings: tuple[str, ...] = ()
    network: nn.Module = field(repr=False, compare=False)

    @property
    def speedup(self) -> float:
        """How many times as fast as the dense network it is, at the smallest batch size that was timed."""
        return self.bench.speedup.ratio

    @property
    def accuracy(self) -> Accuracy | None:
        """Top-1 on the labelled images that were given; None where there were none."""
        return self.verification.accuracy

    @property
    def report(self) -> Path:
        """The page to open or to send."""
        return self.folder / "report.html"

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        compressed = CompressResult(folder=self.folder, plan=self.plan, warnings=self.warnings).to_dict()
        return {
            **compressed,
            "verify": self.verification.to_dict(),
            "bench": self.bench.to_dict(),
            "report": str(self.report),
        }


@dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """The trained bundle, its accuracy on the way, and the network in memory: in eval mode, on the CPU."""

    folder: Path
    plan: Plan
    events: tuple[Event, ...]
    network: nn.Module = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        training = self.plan.training
        return {
            "folder": str(self.folder),
            "macs": {"dense": self.plan.dense.macs, "pruned": self.plan.pruned.macs},
            "training": asdict(training) if isinstance(training, Trained) else training,
            "events": [asdict(event) for event in self.events],
        }


@dataclass(frozen=True, kw_only=True)
class PushResult:
    """Where the bundle is on the hub now."""

    folder: Path
    repository: str
    commit: str
    url: str
    private: bool
    files: Mapping[str, int]

    @property
    def name(self) -> str:
        """What loads just this bundle, whatever is pushed later."""
        return f"hf-hub:{self.repository}@{self.commit}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "folder": str(self.folder), "files": dict(self.files), "name": self.name}
