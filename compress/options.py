"""What a user says about how much is pruned, and how."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pruneport.models.options import PreparationOptions

__all__ = ["CriterionName", "PruneOptions", "RankingName", "RecoverName", "RecoveryOptions", "ScopeName"]

CriterionName = Literal["l1", "l2", "random"]
ScopeName = Literal["filters", "channels"]
RankingName = Literal["uniform", "global"]
RecoverName = Literal["auto", "none", "bn", "reconstruct"]


@dataclass(frozen=True, kw_only=True)
class PruneOptions:
    """How much to remove, chosen how. Exactly one of flops, params and ratio is given."""

    flops: float | None = None
    """Keep this fraction of the dense network's compute (fvcore's count), in (0, 1)."""
    params: float | None = None
    """Keep this fraction of the dense network's parameters, in (0, 1)."""
    ratio: float | None = None
    """Remove this fraction of the filters, in (0, 1)."""
    criterion: CriterionName = "l1"
    """What makes a filter worth keeping."""
    scope: ScopeName = "filters"
    """filters: only groups inside a block; channels: the residual streams too."""
    ranking: RankingName = "uniform"
    """uniform: the same share of every group; global: filters compete across groups."""
    round_to: int = 8
    """Kept widths are multiples of this."""
    max_pruning_ratio: float = 0.9
    """No group loses more than this share of its filters."""
    keep: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Leave groups dense that hold a module whose name matches this shell pattern; may be repeated."""


@dataclass(frozen=True, kw_only=True)
class RecoveryOptions(PreparationOptions):
    """How accuracy is won back without training."""

    recover: RecoverName = "auto"
    """bn: measure BatchNorm statistics anew; reconstruct: solve weights by least squares; auto: the best that the
    given images allow."""
    calibration: Path | None = None
    """A folder of images for the recovery; labels are not needed and not used."""
    calibration_images: int = 256
    """Use at most this many of them, taken evenly from the whole folder."""
