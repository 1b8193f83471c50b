"""A small residual network, pruned, and inputs: what recoveries are tried on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pruneport.compress.activations.calibration import Batches
from pruneport.compress.options import PruneOptions
from pruneport.compress.prune import Pruned, prune
from pruneport.compress.recovery.recover import recover
from pruneport.compress.surgery.apply import positions_kept
from pruneport.models.digits.network import digits_resnet
from pruneport.models.record import Source
from small_networks import randomise_norms

__all__ = ["SHAPE", "batches_of", "images", "kept_of", "network", "output_error", "pruned_from"]

SHAPE = (1, 8, 8)


def network(seed: int = 0) -> nn.Module:
    """The embedded architecture with random weights and statistics that are alive."""
    torch.manual_seed(seed)
    built = digits_resnet()
    randomise_norms(built)
    return built.eval()


def pruned_from(dense: nn.Module, flops: float = 0.6) -> Pruned:
    return prune(dense, Source(spec="x:y", model_args={}, input_shape=SHAPE), PruneOptions(flops=flops))


def batches_of(inputs: Tensor, size: int) -> Batches:
    return [lambda part=part: part.clone() for part in inputs.split(size)]  # type: ignore[misc]


def kept_of(pruned: Pruned) -> dict[str, dict[str, list[int]]]:
    groups = [group for group in pruned.plan.groups if group.kept is not None]
    return positions_kept([(member, group.kept or ()) for group in groups for member in group.members])


def output_error(dense: nn.Module, pruned: nn.Module, batches: Batches) -> float:
    """What is only measured, without a recovery."""
    return recover("none", dense, pruned, (), batches).error_after


def images(count: int = 96) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(5))
