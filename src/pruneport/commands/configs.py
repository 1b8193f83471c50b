"""One frozen configuration a verb: the command line builds it, a Python caller passes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pruneport.bench.options import BenchOptions, ExecutorOptions, LatencyOptions, PlaceOptions, ProviderName
from pruneport.bench.transfer.options import StudyOptions
from pruneport.compress.options import (
    AttentionName,
    CalibrationImages,
    ChoiceOptions,
    CompressOptions,
    DepthName,
    PruneOptions,
    RecoveryOptions,
    ScopeName,
    TrainOptions,
)
from pruneport.export.options import ExportOptions, OnnxPrecision, ParityOptions
from pruneport.models.options import SourceOptions

__all__ = [
    "BenchConfig",
    "BundleOptions",
    "CompressConfig",
    "DeployOptions",
    "ExportConfig",
    "FinetuneConfig",
    "InspectConfig",
    "LatencyConfig",
    "MemoryOptions",
    "PushConfig",
    "ShipConfig",
    "StartOptions",
    "SweepConfig",
    "TransferConfig",
    "VerifyConfig",
]


@dataclass(frozen=True, kw_only=True)
class StartOptions(SourceOptions):
    """What a command starts from: a source, or a bundle to go on from."""

    source: tyro.conf.Positional[str]
    """torchvision:NAME, timm:NAME, pruneport:NAME, package.module:factory or path/to/file.py:factory; timm also takes
    timm:hf-hub:OWNER/NAME and timm:local-dir:FOLDER. Or a bundle to go on from: its folder, or hf-hub:OWNER/NAME."""
    factory: str | None = None
    """For a bundle that was made from code of your own: path/to/file.py:factory or package.module:factory."""


@dataclass(frozen=True, kw_only=True)
class InspectConfig(CalibrationImages, StartOptions):
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
class CompressConfig(LatencyOptions, CompressOptions, StartOptions):
    """Prune a network to a target, recover accuracy where images are given, and write it as a bundle.

    A bundle is compressed further. `flops` and `params` are shares of the original dense network all the same: of a
    bundle at 0.7, 0.5 keeps half of the original. `ratio` and `max_pruning_ratio` are of the filters that are left. To
    measure against the original, `checkpoint` says where its weights lie now, if they were moved.
    """

    out: Path
    """The bundle's folder; it must not exist yet, or be empty. Beside it, OUT.imitation holds what an imitation that
    was stopped needs to go on: give the same command again."""
    overwrite: bool = False
    """Replace the bundle that is there."""
    dry_export: bool = False
    """Export the dense network first, and keep nothing of it, to know at once what torch's exporter refuses."""


@dataclass(frozen=True, kw_only=True)
class MemoryOptions(LatencyOptions, CompressOptions):
    """How a network that is in memory is pruned."""


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
class DeployOptions(BenchOptions, ParityOptions, ExportOptions):
    """How a pruned network is exported, verified and timed."""


@dataclass(frozen=True, kw_only=True)
class LatencyConfig(PlaceOptions, SourceOptions):
    """Time networks of random widths on this machine, for a latency target that is set on another.

    The table goes to compress and ship as `latency_table`. Weights play no part, so no checkpoint is needed.
    """

    out: Path
    """The table: a .json file."""
    overwrite: bool = False
    """Replace the table that is there."""
    scope: ScopeName = "filters"
    """filters: vary only groups inside a block; channels: the residual streams too."""
    prune_representation: bool = False
    """Vary the output layer's input too."""
    attention: AttentionName = "width"
    """width: all attention heads of a layer lose the same channels; heads: whole attention heads go."""
    depth: DepthName = "never"
    """auto: time networks that lack residual branches, too."""
    max_pruning_ratio: float = 0.9
    """No group loses more than this share of its filters."""
    round_to: int = 8
    """Widths are multiples of this; default: the device's own step, or 8 where it has none."""
    keep: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Leave groups dense that hold a module whose name matches this shell pattern; may be repeated."""


@dataclass(frozen=True, kw_only=True)
class ShipConfig(DeployOptions, CompressConfig):
    """The main job: compress, export, verify, bench and report, in one command.

    A bundle is compressed further. `flops` and `params` are shares of the original dense network all the same: of a
    bundle at 0.7, 0.5 keeps half of the original. `ratio` and `max_pruning_ratio` are of the filters that are left. To
    measure against the original, `checkpoint` says where its weights lie now, if they were moved.
    """

    dry_export: bool = True
    """Leave out exporting the dense network before anything else, and find out at the end whether torch can."""
    max_drop: float | None = None
    """The most points of top-1 to lose on labelled `images`. With a target: fail (exit 1) where more is lost. Without
    one: search for the fastest network that loses no more."""


@dataclass(frozen=True, kw_only=True)
class SweepConfig(ExecutorOptions, DeployOptions, LatencyOptions, RecoveryOptions, ChoiceOptions, StartOptions):
    """Draw the trade-off: prune a network to several targets, ship each as a bundle, and report them on one page.

    Sensitivities are measured once. What was finished is kept in OUT, so a sweep that was stopped goes on when the
    command is given again; points may be added to it.
    """

    flops: tuple[float, ...] = ()
    """Keep these fractions of the dense network's compute (fvcore's count), each in (0, 1)."""
    params: tuple[float, ...] = ()
    """Keep these fractions of the dense network's parameters, each in (0, 1)."""
    ratio: tuple[float, ...] = ()
    """Remove these fractions of the filters, each in (0, 1)."""
    latency: tuple[float, ...] = ()
    """Keep these fractions of the dense network's latency at `latency_batch`, each in (0, 1), as timed."""
    max_drop: float | None = None
    """Pick the fastest network that loses no more points of top-1 on labelled `images`, such as 1.0; between the points
    it is searched for."""
    min_speedup: float | None = None
    """Pick the most accurate network that is surely as many times as fast as the dense one, such as 1.5; between the
    points it is searched for."""
    memory: float | None = None
    """GiB of the accelerator's memory, on the CPU of the process's, that pruning and recovery may use; default: what is
    free. With `executor=ray` also what one point is expected to need of a machine's memory; default: 3."""
    out: Path
    """The sweep's folder: a bundle for each point, sweep.json and report.html. One that is there goes on."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainOptions, PruneOptions, StartOptions):
    """Train a bundle, or a dense network, on a task of your own: labelled images in folders. The result is a bundle.

    What says how to prune is for `schedule`.
    """

    out: Path
    """The new bundle's folder; it must not exist yet, or be empty. Beside it, OUT.training holds what a run that was
    stopped needs to go on: give the same command again."""
    overwrite: bool = False
    """Replace the bundle that is there."""


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
