"""The fields of the configurations as keyword arguments: typed here, documented at the configurations' own fields."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TypedDict

from pruneport.bench.options import ExecutorName, ProviderName, TimedPrecision
from pruneport.compress.options import (
    AcceleratorName,
    AttentionName,
    CriterionOrImportance,
    DepthName,
    LabelsName,
    OptimizerName,
    PrecisionName,
    RankingName,
    RecoverName,
    ScheduleName,
    ScopeName,
)
from pruneport.export.options import DynamicName, EmbeddedName, OnnxPrecision
from pruneport.models.options import AugmentName, InterpolationName

__all__ = [
    "BenchKeywords",
    "CompressKeywords",
    "ExportKeywords",
    "FinetuneKeywords",
    "InspectKeywords",
    "MemoryKeywords",
    "ParityKeywords",
    "PathName",
    "PruneKeywords",
    "ShipKeywords",
    "SweepKeywords",
]

PathName = str | PathLike[str]


class _PreparationKeywords(TypedDict, total=False):
    resize: int | None
    interpolation: InterpolationName | None
    mean: Sequence[float] | None
    std: Sequence[float] | None


class _ChoiceKeywords(TypedDict, total=False):
    criterion: CriterionOrImportance
    scope: ScopeName
    prune_representation: bool
    attention: AttentionName
    depth: DepthName
    ranking: RankingName
    round_to: int
    max_pruning_ratio: float
    keep: Sequence[str]


class _CalibrationKeywords(_PreparationKeywords, total=False):
    calibration_images: int
    skip_unreadable: bool
    accelerator: str
    memory: float | None


class _StartKeywords(TypedDict, total=False):
    checkpoint: PathName | None
    weights: str | None
    model_arg: Sequence[str]
    class_names: PathName | None
    seed: int
    factory: str | None


class PruneKeywords(_ChoiceKeywords, _CalibrationKeywords, total=False):
    """Fields of ``CompressOptions``, but for the target and the calibration."""

    calibration_labels: LabelsName
    recover: RecoverName
    recovery_minutes: float | None
    recovery_steps: int | None


class _RuntimeKeywords(TypedDict, total=False):
    """Fields of ``RuntimeOptions``."""

    provider: ProviderName
    repeats: int
    warmup: int
    threads: int | None
    device: int
    tf32: bool
    nhwc: bool
    fuse_conv_bias: bool
    small_workspace: bool
    cuda_graph: bool


class _LatencyKeywords(_RuntimeKeywords, total=False):
    """Fields of ``LatencyOptions``."""

    latency_batch: int
    latency_precision: TimedPrecision | None
    latency_table: PathName | None
    latency_cache: PathName | None


class MemoryKeywords(PruneKeywords, _LatencyKeywords, total=False):
    """Fields of ``MemoryOptions``, but for the target and the calibration."""


class CompressKeywords(PruneKeywords, _StartKeywords, _LatencyKeywords, total=False):
    """Fields of ``CompressConfig``, but for the source, the target and the bundle's folder."""

    calibration: PathName | None
    input_shape: tuple[int, int, int] | None
    overwrite: bool
    dry_export: bool


class InspectKeywords(_CalibrationKeywords, _StartKeywords, total=False):
    """Fields of ``InspectConfig``, but for the source and the input's shape."""

    calibration: PathName | None
    sensitivity: bool
    plot: PathName
    graph: PathName | None
    scope: ScopeName
    round_to: int
    keep: Sequence[str]
    members: bool


class FinetuneKeywords(_ChoiceKeywords, _PreparationKeywords, _StartKeywords, total=False):
    """Fields of ``FinetuneConfig``, but for the source, the task, the target and the bundle's folder."""

    input_shape: tuple[int, int, int] | None
    epochs: float | None
    steps: int | None
    budget: float | None
    batch_size: int
    optimizer: OptimizerName
    learning_rate: float | None
    head_rate: float
    weight_decay: float
    warmup: float
    augment: AugmentName
    distill: float
    schedule: ScheduleName
    cuts: int
    evaluations: int
    precision: PrecisionName
    accelerator: AcceleratorName
    devices: int
    workers: int
    save_every: float
    keep_head: bool
    overwrite: bool


class ParityKeywords(_PreparationKeywords, total=False):
    """Fields of ``ParityOptions``, but for the images."""

    images_limit: int | None
    parity_batches: Sequence[int]


class BenchKeywords(_RuntimeKeywords, total=False):
    """Fields of ``BenchOptions``."""

    batches: Sequence[int]
    confidence: float
    require_speedup: float | None


class ExportKeywords(TypedDict, total=False):
    """Fields of ``ExportOptions``."""

    batch_size_fixed: int | None
    dynamic: DynamicName
    opset: int | None
    input_names: Sequence[str]
    output_names: Sequence[str]
    external_data: bool
    embed_preprocessing: EmbeddedName | None
    precisions: Sequence[OnnxPrecision]
    float_layers: Sequence[str]


class _DeployKeywords(BenchKeywords, ExportKeywords, total=False):
    images: PathName | None
    images_limit: int | None
    parity_batches: Sequence[int]


class ShipKeywords(CompressKeywords, _DeployKeywords, total=False):
    """Fields of ``ShipConfig``, but for the source, the target and the bundle's folder."""

    max_drop: float | None


class SweepKeywords(PruneKeywords, _StartKeywords, _LatencyKeywords, _DeployKeywords, total=False):
    """Fields of ``SweepConfig``, but for the source, the targets, the limits and the folder."""

    calibration: PathName | None
    input_shape: tuple[int, int, int] | None
    executor: ExecutorName
    address: str | None
