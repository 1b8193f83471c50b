"""What a user says about how much is pruned, and how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from pruneport.models.options import AugmentName, PreparationOptions

__all__ = [
    "AcceleratorName",
    "AttentionName",
    "CalibrationImages",
    "CalibrationOptions",
    "ChoiceOptions",
    "CompressOptions",
    "CriterionName",
    "DepthName",
    "Importance",
    "LabelsName",
    "LatencyTarget",
    "OptimizerName",
    "PrecisionName",
    "PruneOptions",
    "RankingName",
    "RecoverName",
    "RecoveryOptions",
    "ScheduleName",
    "ScopeName",
    "TargetOptions",
    "TrainOptions",
]

CriterionName = Literal[
    "auto",
    "l1",
    "l2",
    "lamp",
    "fpgm",
    "bn-scale",
    "synflow",
    "random",
    "activation",
    "block-hessian",
    "taylor",
    "snip",
    "grasp",
    "fisher",
    "torch_pruning:GroupMagnitudeImportance",
    "torch_pruning:LAMPImportance",
    "torch_pruning:FPGMImportance",
    "torch_pruning:BNScaleImportance",
    "torch_pruning:RandomImportance",
    "torch_pruning:GroupTaylorImportance",
    "torch_pruning:GroupHessianImportance",
]
Importance = Callable[[Any], Any]
"""Takes a group of torch-pruning's and returns a score for each of its channels; see ``torch_pruning.importance``."""
if TYPE_CHECKING:
    CriterionOrImportance = CriterionName | Importance
else:
    CriterionOrImportance = CriterionName  # what the command line offers
AttentionName = Literal["width", "heads"]
DepthName = Literal["never", "auto"]
ScopeName = Literal["filters", "channels"]
RankingName = Literal["auto", "uniform", "global", "isomorphic", "sensitivity"]
RecoverName = Literal["auto", "none", "bn", "reconstruct", "data-free", "imitate"]
LabelsName = Literal["auto", "folder", "predicted"]
OptimizerName = Literal["sgd", "adamw"]
PrecisionName = Literal["auto", "32", "bf16"]
AcceleratorName = Literal["auto", "cpu", "cuda", "mps"]
ScheduleName = Literal["none", "loss"]


@dataclass(frozen=True, kw_only=True)
class TargetOptions:
    """How much to remove. Exactly one of flops, params and ratio is given."""

    flops: float | None = None
    """Keep this fraction of the dense network's compute (fvcore's count), in (0, 1); of a bundle, of its original's."""
    params: float | None = None
    """Keep this fraction of the dense network's parameters, in (0, 1); of a bundle, of its original's."""
    ratio: float | None = None
    """Remove this fraction of the filters, in (0, 1); of a bundle, of those that are left."""


@dataclass(frozen=True, kw_only=True)
class ChoiceOptions:
    """How it is chosen what goes, whatever the target."""

    criterion: CriterionOrImportance = "auto"
    """What makes a filter worth keeping. auto: block-hessian where there are inputs to calibrate with, else l1.
    activation and block-hessian need inputs; taylor, snip, grasp, fisher and the last two need images. torch_pruning:
    torch-pruning's own; in Python any object of its kind."""
    scope: ScopeName = "filters"
    """filters: only groups inside a block; channels: the residual streams too."""
    prune_representation: bool = False
    """Prune the output layer's input too, which the papers leave whole."""
    attention: AttentionName = "width"
    """width: all attention heads of a layer lose the same channels; heads: whole attention heads go."""
    depth: DepthName = "never"
    """never: every block stays; auto: residual branches, f of x + f(x), may be dropped as a whole where that costs less
    than narrower layers. What that costs is measured: on synthetic inputs where there are no others, and no ranking but
    sensitivity goes with it. `max_pruning_ratio` says nothing of branches, `keep` does."""
    ranking: RankingName = "auto"
    """auto: sensitivity where there are inputs to calibrate with, or `depth` is auto; else uniform. uniform: the same
    share of every group; global: filters compete across groups; isomorphic: among groups of the same structure;
    sensitivity: the damage of each group is measured, and the least for the target is solved for."""
    round_to: int = 8
    """Kept widths are multiples of this."""
    max_pruning_ratio: float = 0.9
    """No group loses more than this share of its filters."""
    keep: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Leave groups dense that hold a module whose name matches this shell pattern; may be repeated."""


@dataclass(frozen=True, kw_only=True)
class PruneOptions(ChoiceOptions, TargetOptions):
    """How much to remove, chosen how."""


@dataclass(frozen=True, kw_only=True)
class LatencyTarget(PruneOptions):
    """Two more targets, for who can time networks; exactly one of all five is given."""

    latency: float | None = None
    """Keep this fraction of the dense network's latency, in (0, 1): networks are timed where they will run, and the one
    that is exported is timed against dense until it meets the target. Widths are multiples of the device's own step,
    which is measured, where `round_to` is not given another number."""
    latency_ms: float | None = None
    """The same in milliseconds a batch."""


@dataclass(frozen=True, kw_only=True)
class CalibrationImages(PreparationOptions):
    """Images that say what the network sees in use."""

    calibration: Path | None = None
    """A folder of images to score, measure and recover with, and to calibrate int8; recovery never reads labels."""
    calibration_images: int = 256
    """Use at most this many of them, taken evenly from the whole folder; of synthetic inputs, at most 64 are made, and
    128 of less than 96 pixels a side. A tenth as many more, at least 16, are held out to measure the result on; of
    fewer images in all, a tenth of them, at least 16, and of fewer than 32 none."""
    skip_unreadable: bool = False
    """Leave out images that cannot be read, instead of stopping; the plan names them."""
    accelerator: str = "auto"
    """Where groups are scored and measured, synthetic inputs are made and accuracy is won back: cpu, cuda, or another
    device that torch knows, such as cuda:1, xpu or mps. auto: an accelerator where torch sees one, else the CPU."""
    memory: float | None = None
    """GiB of the accelerator's memory, on the CPU of the process's, that all this may use; default: what is free. What
    is kept for later waits in files beyond, and on cuda and xpu batches become smaller where one does not fit."""


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions(CalibrationImages):
    """The same where they decide what is removed."""

    calibration_labels: LabelsName = "auto"
    """For criteria with a loss. folder: the class folders in sorted order; predicted: the dense network's own answers;
    auto: the class folders if there are any."""


@dataclass(frozen=True, kw_only=True)
class RecoveryOptions(CalibrationOptions):
    """How accuracy is won back without labels."""

    recover: RecoverName = "auto"
    """bn: measure BatchNorm statistics anew; reconstruct: solve weights by least squares; data-free: the same on
    synthetic inputs that match the BatchNorm statistics; imitate: reconstruct, then train all weights for some minutes
    to compute the dense network's features, on the images or else on synthetic inputs; auto: reconstruct or data-free,
    and imitate where `recovery_minutes` are given."""
    recovery_minutes: float | None = None
    """How long imitation may take, including the choice of its learning rate; 5 where nothing is given, and as long as
    its 2000 steps take on a GPU."""
    recovery_steps: int | None = None
    """The number of steps in the place of minutes: with the seed it gives the same network again."""


@dataclass(frozen=True, kw_only=True)
class CompressOptions(RecoveryOptions, LatencyTarget):
    """How much is pruned, and how accuracy is won back."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions(PreparationOptions):
    """How a network is trained on a task. At most one of epochs, steps and budget is given."""

    task: Path
    """A folder with train/CLASS/* and test/CLASS/* (or val)."""
    epochs: float | None = None
    """Passes over the training images; 10 where nothing else is given."""
    steps: int | None = None
    """Steps of the optimizer."""
    budget: float | None = None
    """Training FLOPs to spend, such as 1e14: forward and backward of every image, validation not counted."""
    batch_size: int = 32
    """Images a step, over all devices."""
    optimizer: OptimizerName = "adamw"
    """adamw; sgd: with Nesterov momentum 0.9."""
    learning_rate: float | None = None
    """Highest learning rate of the pretrained layers; 0.01 for sgd, 0.0003 for adamw."""
    head_rate: float = 10
    """A new output layer learns this many times as fast."""
    weight_decay: float = 1e-4
    """On weights; norms and biases have none."""
    warmup: float = 0.05
    """Share of the training in which the rate rises from zero; then it falls as a cosine."""
    augment: AugmentName = "crop-flip"
    """crop: a part of random size and place, half of the area at least; crop-flip: half of them mirrored, too."""
    distill: float = 0
    """Weight of the squared distance to the dense network's representation, beside the loss on labels; 0: none."""
    schedule: ScheduleName = "none"
    """loss: prune to `flops` while training, in steps: each waits until the training loss has come back to where it was
    before the last."""
    cuts: int = 4
    """Steps in which the schedule reaches its target, all of them in the first two thirds of the training."""
    evaluations: int = 10
    """How often accuracy is measured on the test images, evenly over the training."""
    precision: PrecisionName = "auto"
    """auto: bf16 mixed precision on GPUs, float32 elsewhere."""
    accelerator: AcceleratorName = "auto"
    """Where to train. auto: on a GPU where torch sees one, else the CPU. cuda: also AMD's GPUs, which torch's build for
    ROCm names so; mps: Apple's."""
    devices: int = 1
    """How many GPUs, or processes on the CPU; each takes its share of every batch."""
    workers: int = 0
    """Processes a device that decode images."""
    save_every: float = 60
    """Seconds between saved states, from which a run that was stopped goes on bit for bit."""
    keep_head: bool = False
    """Train the output layer that is there; its outputs must be the task's classes in sorted order."""
