"""One frozen configuration a verb: the command line builds it, a Python caller passes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pruneport.bench.options import BenchOptions, ProviderName
from pruneport.bench.transfer.options import StudyOptions
from pruneport.compress.options import (
    CalibrationImages,
    CalibrationOptions,
    CompressOptions,
    PruneOptions,
    ScopeName,
    TrainOptions,
)
from pruneport.export.options import ExportOptions, OnnxPrecision, ParityOptions
from pruneport.models.options import SourceOptions

__all__ = [
    "BenchConfig",
    "BundleOptions",
    "CompressConfig",
    "ExportConfig",
    "FinetuneConfig",
    "InspectConfig",
    "PushConfig",
    "ShipConfig",
    "TransferConfig",
    "VerifyConfig",
]


@dataclass(frozen=True, kw_only=True)
class InspectConfig(CalibrationOptions, SourceOptions):
    """Show the coupled groups of a network: what must be pruned together, and what hangs on it."""

    sensitivity: bool = False
    """Measure what removing filters costs, group by group, and draw the curves; without `calibration`, on synthetic
    inputs."""
    plot: Path = Path("sensitivity.svg")
    """Where the curves are drawn to: an .svg file."""
    graph: Path | None = None
    """Draw the groups with the layers that hang on them: an .svg, .png or .pdf file."""

    scope: ScopeName = "filters"
    """Say of each group whether it could be pruned in this scope; filters is what compress prunes by itself."""
    round_to: int = 8
    """Kept widths would be multiples of this."""
    keep: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Leave groups dense that hold a module whose name matches this shell pattern; may be repeated."""
    members: bool = False
    """Name every layer of every group, with the axis that shrinks."""


@dataclass(frozen=True, kw_only=True)
class CompressConfig(CompressOptions, SourceOptions):
    """Prune a network to a target, recover accuracy where images are given, and write it as a bundle."""

    out: Path
    """The bundle's folder; it must not exist yet, or be empty."""
    overwrite: bool = False
    """Replace the bundle that is there."""
    dry_export: bool = False
    """Export the dense network first, and keep nothing of it, to know at once what torch's exporter refuses."""


@dataclass(frozen=True, kw_only=True)
class BundleOptions:
    """An existing bundle, and who builds its architecture."""

    folder: tyro.conf.Positional[Path]
    """The bundle: its folder, or hf-hub:OWNER/NAME."""
    factory: str | None = None
    """path/to/file.py:factory or package.module:factory that builds the dense architecture."""
    trust_source: bool = False
    """Run the factory that the plan names; only for bundles you trust."""
    checkpoint: Path | None = None
    """Where the dense checkpoint lies now, if it was moved; its content must be the same."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig(ExportOptions, CalibrationImages, BundleOptions):
    """Write model.onnx, and dense.onnx of the original, into a bundle.

    What was verified and measured on ONNX files before them (verify.json, bench.json, report.html) leaves the bundle.
    """

    provider: ProviderName = "cpu"
    """ONNX Runtime execution provider that int8 files are made for; cuda has no int8."""


@dataclass(frozen=True, kw_only=True)
class VerifyConfig(ParityOptions, BundleOptions):
    """Check a bundle: hashes, valid ONNX, the same outputs from torch and ONNX Runtime."""


@dataclass(frozen=True, kw_only=True)
class BenchConfig(BenchOptions):
    """Time a bundle's dense and pruned ONNX against each other, interleaved in one process."""

    folder: tyro.conf.Positional[Path]
    """The bundle: its folder, or hf-hub:OWNER/NAME."""
    precision: OnnxPrecision | None = None
    """Time this precision alone, beside fp32, which is always timed; default: all that the bundle has and the provider
    runs."""


@dataclass(frozen=True, kw_only=True)
class ShipConfig(BenchOptions, ParityOptions, ExportOptions, CompressConfig):
    """The main job: compress, export, verify, bench and report, in one command."""

    dry_export: bool = True
    """Leave out exporting the dense network before anything else, and find out at the end whether torch can."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainOptions, PruneOptions, SourceOptions):
    """Train a bundle, or a dense network, on a task of your own: labelled images in folders. The result is a bundle.

    The source is a bundle's folder or anything that compress takes. What says how to prune is for `schedule`.
    """

    out: Path
    """The new bundle's folder; it must not exist yet, or be empty. Beside it, OUT.training holds what a run that was
    stopped needs to go on: give the same command again."""
    overwrite: bool = False
    """Replace the bundle that is there."""
    factory: str | None = None
    """For a bundle that was made from code of your own: path/to/file.py:factory or package.module:factory."""


@dataclass(frozen=True, kw_only=True)
class PushConfig:
    """Upload a bundle with its model card to the Hugging Face Hub, as one commit of the files in its manifest.

    The token is huggingface_hub's own: HF_TOKEN, or what `hf auth login` stored.
    """

    folder: tyro.conf.Positional[Path]
    """The bundle."""
    repository: tyro.conf.Positional[str]
    """Where to: OWNER/NAME. It is made where there is none; a bundle that is there is replaced by a new commit."""
    private: bool = False
    """Make the repository private; one that is there must be."""


@dataclass(frozen=True, kw_only=True)
class TransferConfig(StudyOptions):
    """How much to prune before fine-tuning: train every network of a grid on every task with every budget, and say.

    What has run is kept in OUT/study.sqlite, so a run that was stopped goes on when the command is given again, and a
    finished one does nothing.
    """

    study: tyro.conf.Positional[Path | None] = None
    """A .yaml file with any of the options below, as NAME: VALUE. It comes first; flags after it have the last word."""
    out: Path | None = None
    """Holds the store, the pruned networks and report.html; default: the study's name."""
    report: bool = False
    """Train nothing: write the report from what has run, also while the study runs."""
    advise: bool = False
    """Train nothing: say from the store what to keep at `budget`."""
    budget: float | None = None
    """With `advise`: training FLOPs, such as 1e12."""
    task: str | None = None
    """With `advise`: one of the study's tasks; default: a task like them."""
    network: str | None = None
    """With `advise`: one of the study's networks, where there are several."""
