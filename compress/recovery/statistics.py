"""Statistics of BatchNorms, which removing filters shifts, measured anew."""

from __future__ import annotations

import torch
from torch import nn

from pruneport.compress.activations.calibration import Batches
from pruneport.models.inputs import run_on
from pruneport.progress import Progress, Step

__all__ = ["estimate_statistics"]

_BatchNorm = nn.modules.batchnorm._BatchNorm


def estimate_statistics(pruned: nn.Module, batches: Batches, progress: Progress) -> None:
    """Measure the mean and variance of every BatchNorm anew, as the average over the batches."""
    norms = [m for m in pruned.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # torch then keeps the plain average
            norm.train()
        with torch.no_grad():
            for number, load in enumerate(batches, start=1):
                progress(Step(f"measuring statistics, batch {number} of {len(batches)}", number - 1, len(batches)))
                run_on(pruned, load())
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
