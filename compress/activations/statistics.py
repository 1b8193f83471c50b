"""Statistics of BatchNorms: measured anew where filters were removed, or those of synthetic inputs for a while."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from pruneport.compress.activations.calibration import Batches
from pruneport.models.inputs import batch_of, run_on
from pruneport.progress import Progress, Step

__all__ = ["as_seen", "estimate_statistics", "norms_of", "seeing"]

_BatchNorm = nn.modules.batchnorm._BatchNorm


def estimate_statistics(pruned: nn.Module, batches: Batches, progress: Progress) -> None:
    """Measure the mean and variance of every BatchNorm anew, as the average over the batches.

    One that measures nothing, as an auxiliary output's that does not run, or one that stays frozen, keeps its own.
    """
    norms = [*norms_of(pruned).values()]
    momenta = [norm.momentum for norm in norms]
    remembered = [copy.deepcopy(norm.state_dict()) for norm in norms]
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
        for norm, momentum, own in zip(norms, momenta, remembered, strict=True):
            norm.momentum = momentum
            norm.eval()
            if not norm.num_batches_tracked:
                norm.load_state_dict(own)


def seeing(network: nn.Module, batches: Batches, progress: Progress) -> nn.Module:
    """A copy of the network whose BatchNorms normalise by what these inputs give, in place of what they remember.

    Synthetic inputs match the remembered statistics only nearly. Normalised by their own (as in AdaBN, Li et al. 2016,
    arXiv 1603.04779, there for images of another kind), what layers read has the mean and the variance that it has of
    images.

    Args:
        network: In eval mode; it is only read and run.
        batches: Inputs, several in each: of a single one in a batch the network itself is returned.
        progress: Told what is being done.
    """
    if min(batch_of(load()) for load in batches) < 2:
        return network
    copied = copy.deepcopy(network)
    estimate_statistics(copied, batches, progress)
    return copied


@contextmanager
def as_seen(
    dense: nn.Module,
    pruned: nn.Module,
    kept: Mapping[str, Mapping[str, Sequence[int]]],
    batches: Batches,
    progress: Progress,
) -> Iterator[nn.Module]:
    """Have both networks normalise by what the inputs give, as ``seeing`` says, for as long as weights are fitted.

    Args:
        dense: The dense network; it is left as it is.
        pruned: The pruned one. Afterwards its BatchNorms remember what they did before, with what was added to their
            means meanwhile.
        kept: Positions kept by layer and axis.
        batches: Inputs.
        progress: Told what is being done.

    Yields:
        The dense network's copy.
    """
    teacher = seeing(dense, batches, progress)
    seen = norms_of(teacher)
    before = []
    for name, norm in norms_of(pruned).items():
        if name in seen:
            places = [*next(iter(kept.get(name, {}).values()), range(seen[name].num_features))]
            mean, variance = (part[places] for part in (seen[name].running_mean, seen[name].running_var))
            before.append((norm, mean, norm.running_mean.clone(), norm.running_var.clone()))
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
    try:
        yield teacher
    finally:
        for norm, mean, remembered, variance in before:
            norm.running_mean.sub_(mean).add_(remembered)
            norm.running_var.copy_(variance)


def norms_of(network: nn.Module) -> dict[str, Any]:
    """The BatchNorms that remember statistics, by name."""
    found = ((name, m) for name, m in network.named_modules() if isinstance(m, _BatchNorm))
    return {name: norm for name, norm in found if norm.running_mean is not None}
