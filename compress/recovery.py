"""Recovery: accuracy won back after pruning, closed-form or by statistics only; nothing is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import nn

from pruneport.compress.calibration import Batches
from pruneport.compress.options import RecoveryOptions
from pruneport.compress.plan import GroupPlan, positions_kept
from pruneport.compress.reconstruct import reconstruct
from pruneport.compress.record import Recovered
from pruneport.compress.sensitivity import relative_error
from pruneport.compress.synthesis import has_statistics, require_statistics
from pruneport.errors import ImageFolderError
from pruneport.models.outputs import tensor_leaves
from pruneport.progress import Step

__all__ = ["RECOVERIES", "choose_recovery", "output_error", "recover"]

_BatchNorm = nn.modules.batchnorm._BatchNorm
Kept = Mapping[str, Mapping[str, Sequence[int]]]
Recovery = Callable[[nn.Module, nn.Module, Kept, Batches, Callable[[str], None]], None]


def choose_recovery(options: RecoveryOptions, network: nn.Module, trained: bool) -> str:
    """Name the recovery that the options ask for; ``auto`` is the best that the given images allow.

    Args:
        options: What was asked.
        network: The dense network: without images, its BatchNorm statistics are all there is.
        trained: Whether its weights were trained; random ones are not worth recovering without being asked.

    Raises:
        ImageFolderError: It needs images and none are given, or none and they are.
        PruningError: It needs BatchNorm statistics and the network has none.
    """
    if options.recover == "auto":
        if options.calibration is not None:
            return "reconstruct"
        return "data-free" if trained and has_statistics(network) else "none"
    if options.recover == "data-free":
        if options.calibration is not None:
            raise ImageFolderError("--recover data-free uses no images: leave out --calibration, or use reconstruct.")
        require_statistics(network)
    elif options.recover != "none" and options.calibration is None:
        raise ImageFolderError(
            f"--recover {options.recover} needs images: give --calibration FOLDER; no labels are needed. "
            "Without images there is --recover data-free."
        )
    return options.recover


def recover(
    name: str,
    dense: nn.Module,
    pruned: nn.Module,
    groups: Sequence[GroupPlan],
    batches: Batches,
    progress: Callable[[str], None] = lambda message: None,
) -> Recovered:
    """Change the weights or statistics of ``pruned`` in place so that it computes more of what ``dense`` does.

    Args:
        name: A key of ``RECOVERIES``.
        dense: The original network; it is only run.
        pruned: The pruned one.
        groups: What was removed.
        batches: Calibration inputs (B, C, H, W).
        progress: Told what is being done.

    Raises:
        ImageFolderError: There are too few images.
    """
    kept = positions_kept([(m, group.kept) for group in groups if group.kept is not None for m in group.members])
    theirs = _outputs(dense, batches)
    before = relative_error(theirs, _outputs(pruned, batches))
    RECOVERIES[name](dense, pruned, kept, batches, progress)
    return Recovered(
        name=name,
        images=sum(len(outputs) for outputs in theirs),
        error_before=before,
        error_after=relative_error(theirs, _outputs(pruned, batches)),
    )


def output_error(dense: nn.Module, pruned: nn.Module, batches: Batches) -> float:
    """Mean squared difference of the outputs, divided by the variance of the dense ones."""
    return relative_error(_outputs(dense, batches), _outputs(pruned, batches))


@torch.inference_mode()
def _outputs(network: nn.Module, batches: Batches) -> list[torch.Tensor]:
    return [tensor_leaves(network(load()))[0] for load in batches]


def _estimate_statistics(
    dense: nn.Module, pruned: nn.Module, kept: Kept, batches: Batches, progress: Callable[[str], None]
) -> None:
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
                pruned(load())
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()


def _reconstruct(
    dense: nn.Module, pruned: nn.Module, kept: Kept, batches: Batches, progress: Callable[[str], None]
) -> None:
    """Solve every layer behind the first pruned one by least squares; the statistics stay the dense network's."""
    reconstruct(dense, pruned, kept, batches, progress=progress)


def _reconstruct_data_free(
    dense: nn.Module, pruned: nn.Module, kept: Kept, batches: Batches, progress: Callable[[str], None]
) -> None:
    """The same on synthetic inputs; a layer that they are too few for keeps its weights."""
    reconstruct(dense, pruned, kept, batches, progress=progress, strict=False)


RECOVERIES: Mapping[str, Recovery] = MappingProxyType(
    {"bn": _estimate_statistics, "reconstruct": _reconstruct, "data-free": _reconstruct_data_free}
)
