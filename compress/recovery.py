"""Recovery: accuracy won back after pruning, closed-form or by statistics only; nothing is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import nn

from pruneport.compress.options import RecoveryOptions
from pruneport.compress.plan import GroupPlan, positions_kept
from pruneport.compress.reconstruct import reconstruct
from pruneport.compress.record import Recovered
from pruneport.compress.replay import Batches
from pruneport.errors import ImageFolderError
from pruneport.models.images import open_images
from pruneport.models.options import ImageOptions
from pruneport.models.outputs import tensor_leaves

__all__ = ["RECOVERIES", "choose_recovery", "open_calibration", "output_error", "recover"]

_BATCH = 32
_BatchNorm = nn.modules.batchnorm._BatchNorm
Kept = Mapping[str, Mapping[str, Sequence[int]]]
Recovery = Callable[[nn.Module, nn.Module, Kept, Batches, Callable[[str], None]], None]


def choose_recovery(options: RecoveryOptions) -> str:
    """Name the recovery that the options ask for; ``auto`` is the best that the given images allow.

    Raises:
        ImageFolderError: It needs images and none are given, or their number is wrong.
    """
    if options.calibration_images < 1:
        raise ImageFolderError(f"--calibration-images is {options.calibration_images}; expected at least 1.")
    if options.recover == "auto":
        return "reconstruct" if options.calibration is not None else "none"
    if options.recover != "none" and options.calibration is None:
        raise ImageFolderError(
            f"--recover {options.recover} needs images: give --calibration FOLDER; no labels are needed."
        )
    return options.recover


def open_calibration(options: RecoveryOptions, shape: tuple[int, int, int]) -> Batches:
    """List the calibration images as batches that load when they are called for.

    Raises:
        ImageFolderError: No such folder, no images in it, or they cannot be inputs of this shape.
    """
    images = open_images(
        ImageOptions(
            images=options.calibration,
            images_limit=options.calibration_images,
            resize=options.resize,
            mean=options.mean,
            std=options.std,
        ),
        shape,
    )
    return [] if images is None else images.loaders(_BATCH)


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
        batches: Calibration inputs (B, C, H, W), without labels.
        progress: Told what is being done.

    Raises:
        ImageFolderError: There are too few images.
    """
    kept = positions_kept([(m, group.kept) for group in groups if group.kept is not None for m in group.members])
    theirs = _outputs(dense, batches)
    before = _relative_error(theirs, _outputs(pruned, batches))
    RECOVERIES[name](dense, pruned, kept, batches, progress)
    return Recovered(
        name=name,
        images=sum(len(outputs) for outputs in theirs),
        error_before=before,
        error_after=_relative_error(theirs, _outputs(pruned, batches)),
    )


def output_error(dense: nn.Module, pruned: nn.Module, batches: Batches) -> float:
    """Mean squared difference of the outputs, divided by the variance of the dense ones."""
    return _relative_error(_outputs(dense, batches), _outputs(pruned, batches))


def _relative_error(theirs: Sequence[torch.Tensor], ours: Sequence[torch.Tensor]) -> float:
    wanted, got = torch.cat(list(theirs)).double(), torch.cat(list(ours)).double()
    return float((got - wanted).square().mean() / wanted.var(correction=0).clamp_min(1e-30))


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
                progress(f"measuring statistics, batch {number} of {len(batches)}")
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


RECOVERIES: Mapping[str, Recovery] = MappingProxyType({"bn": _estimate_statistics, "reconstruct": _reconstruct})
