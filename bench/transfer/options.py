"""What a user says about a transfer study."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pruneport.bench.options import ExecutorOptions
from pruneport.compress.options import (
    OptimizerName,
    PrecisionName,
    ScopeName,
)
from pruneport.models.options import AugmentName, PreparationOptions

__all__ = ["StudyOptions"]


@dataclass(frozen=True, kw_only=True)
class StudyOptions(ExecutorOptions, PreparationOptions):
    """A grid: every network, pruned to every share of its compute, trained on every task with every budget and seed."""

    networks: tuple[str, ...] = ()
    """Sources as compress takes them, or SOURCE=CHECKPOINT, or SOURCE@WEIGHTS with a weight name of its library."""
    tasks: tuple[str, ...] = ()
    """Folders with train/CLASS/* and test/CLASS/*, or pruneport:digits-NAME (parity, mirrored, inverted)."""
    kept: tuple[float, ...] = (1.0, 0.75, 0.5, 0.35)
    """Shares of the multiply-accumulates kept; 1 is the dense network."""
    budgets: tuple[float, ...] = ()
    """Training FLOPs; each is a training of its own, since the learning rate falls over its length."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each orders and augments the images, and draws the output layer, anew."""
    scopes: tuple[ScopeName, ...] = ("filters",)
    """What is pruned: filters inside blocks, or channels of the residual streams too."""
    recipes: tuple[str, ...] = ("auto/auto/auto",)
    """CRITERION/RANKING/RECOVERY, as compress takes them."""
    round_to: int = 8
    """Kept widths are multiples of this."""
    calibration: Path | None = None
    """Unlabelled images to score and recover with; else synthetic ones, where the recovery needs any."""
    calibration_images: int = 256
    """At most this many of them; small inputs need more, since each gives fewer equations."""
    input_shape: tuple[int, int, int] | None = None
    """Input as C H W."""
    batch_size: int = 32
    """Images a step."""
    optimizer: OptimizerName = "adamw"
    """adamw; sgd: with Nesterov momentum 0.9."""
    learning_rate: float | None = None
    """Highest learning rate of the pretrained layers; a new output layer learns ten times as fast."""
    augment: AugmentName = "crop-flip"
    """What is done to the training images."""
    evaluations: int = 2
    """Measurements a training, evenly; learning curves come from these and from the budgets."""
    test_images: int | None = None
    """Measure on at most this many test images, taken evenly."""
    precision: PrecisionName = "auto"
    """auto: bf16 mixed precision on GPUs, float32 elsewhere."""
    jobs: int | None = None
    """Trials at a time on this machine; default: as many as cores and memory allow."""
