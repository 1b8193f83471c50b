"""What a user says about how much is pruned, and how."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pruneport.models.options import PreparationOptions

__all__ = [
    "AttentionName",
    "CalibrationOptions",
    "CriterionName",
    "LabelsName",
    "PruneOptions",
    "RankingName",
    "RecoverName",
    "RecoveryOptions",
    "ScopeName",
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
]
AttentionName = Literal["width", "heads"]
ScopeName = Literal["filters", "channels"]
RankingName = Literal["auto", "uniform", "global", "isomorphic", "sensitivity"]
RecoverName = Literal["auto", "none", "bn", "reconstruct", "data-free"]
LabelsName = Literal["auto", "folder", "predicted"]


@dataclass(frozen=True, kw_only=True)
class PruneOptions:
    """How much to remove, chosen how. Exactly one of flops, params and ratio is given."""

    flops: float | None = None
    """Keep this fraction of the dense network's compute (fvcore's count), in (0, 1)."""
    params: float | None = None
    """Keep this fraction of the dense network's parameters, in (0, 1)."""
    ratio: float | None = None
    """Remove this fraction of the filters, in (0, 1)."""
    criterion: CriterionName = "auto"
    """What makes a filter worth keeping. auto: block-hessian where there are inputs to calibrate with, else l1. From
    activation on they need inputs; the last four need images."""
    scope: ScopeName = "filters"
    """filters: only groups inside a block; channels: the residual streams too."""
    attention: AttentionName = "width"
    """width: all heads of an attention lose the same channels; heads: whole heads go."""
    ranking: RankingName = "auto"
    """auto: sensitivity where there are inputs to calibrate with, else uniform. uniform: the same share of every group;
    global: filters compete across groups; isomorphic: among groups of the same structure; sensitivity: the damage of
    each group is measured, and the least for the target is solved for."""
    round_to: int = 8
    """Kept widths are multiples of this."""
    max_pruning_ratio: float = 0.9
    """No group loses more than this share of its filters."""
    keep: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Leave groups dense that hold a module whose name matches this shell pattern; may be repeated."""


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions(PreparationOptions):
    """Images that say what the network sees in use."""

    calibration: Path | None = None
    """A folder of images to score, measure and recover with; recovery never reads labels."""
    calibration_images: int = 256
    """Use at most this many of them, taken evenly from the whole folder; of synthetic inputs, at most 64 are made."""
    calibration_labels: LabelsName = "auto"
    """For criteria with a loss. folder: the class folders in sorted order; predicted: the dense network's own answers;
    auto: the class folders if there are any."""
    skip_unreadable: bool = False
    """Leave out images that cannot be read, instead of stopping; the plan names them."""


@dataclass(frozen=True, kw_only=True)
class RecoveryOptions(CalibrationOptions):
    """How accuracy is won back without training."""

    recover: RecoverName = "auto"
    """bn: measure BatchNorm statistics anew; reconstruct: solve weights by least squares; data-free: the same on
    synthetic inputs that match the BatchNorm statistics; auto: the best that the given images allow."""
