"""A small residual network, pruned, and inputs: what recoveries are tried on."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruneport.compress.activations.calibration import Batches
from pruneport.compress.activations.row_weights import RowWeights
from pruneport.compress.options import PruneOptions
from pruneport.compress.prune import Pruned, prune
from pruneport.compress.recovery import imitate
from pruneport.compress.recovery.imitate import Effort
from pruneport.compress.recovery.imitation_state import ImitationState, Unfinished, UnfinishedFile, copied_state
from pruneport.compress.recovery.reconstruct import reconstruct
from pruneport.compress.recovery.recover import recover
from pruneport.compress.resize.layers import narrow
from pruneport.compress.surgery.apply import positions_kept
from pruneport.compress.surgery.rebuild import pruned_copy
from pruneport.models.digits.network import digits_resnet
from pruneport.models.record import Source
from small_networks import randomise_norms

__all__ = [
    "SHAPE",
    "batches_of",
    "images",
    "kept_of",
    "network",
    "output_error",
    "pruned_from",
    "solved_behind",
    "stopped_and_resumed",
    "weights_of_rows",
]

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


def solved_behind(dense: nn.Module, first: str, second: str, keep: list[int], batches: Batches) -> Any:
    """The network with these channels of one layer, and the layer that reads them solved anew."""
    pruned, kept = copy.deepcopy(dense), {first: {"out": keep}, second: {"in": keep}}
    for name, axes in kept.items():
        narrow(pruned, name, axes)
    assert reconstruct(dense, pruned, kept, batches, ridge=1e-9) == [second]
    return pruned


def weights_of_rows(dense: nn.Module, layer: str, batches: Batches, places: int) -> Any:
    """What the rows of all batches count, as numpy's float64; of the first places of the layer's output."""
    weights = RowWeights(dense, [layer], batches)
    found = [weights.of(layer, batch, torch.arange(places)) for batch in range(len(batches))]
    return torch.cat([part for part in found if part is not None]).double().numpy()


def stopped_and_resumed(device: torch.device, file: Path) -> tuple[nn.Module, nn.Module]:
    """A network of random weights that imitated on a device without a stop, and with one in the middle."""
    dense, batches = network(), batches_of(images(96), 32)
    pruned = pruned_from(dense, flops=0.5)
    whole, stopped = copy.deepcopy(pruned.network), copy.deepcopy(pruned.network)

    def imitated(given: nn.Module, unfinished: Unfinished | None) -> None:
        effort = Effort(steps=20)
        groups = pruned.plan.groups
        recover("imitate", dense, given, groups, batches, effort=effort, device=device, unfinished=unfinished)

    class Stopping(Unfinished):
        def save(self, imitation: ImitationState) -> None:
            super().save(imitation)
            if imitation.training is not None and imitation.training.step == 7:
                raise KeyboardInterrupt

    imitated(whole, None)
    place = UnfinishedFile(path=file, settings={})
    begun = Stopping(file=place, plan=pruned.plan, pruned=copied_state(stopped))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(imitate, "_SAVE_EVERY_S", 0)
        with pytest.raises(KeyboardInterrupt):
            imitated(stopped, begun)
    left = place.read()
    assert left is not None
    resumed = pruned_copy(dense, left.plan, left.pruned)
    imitated(resumed, left)
    return whole, resumed


def output_error(dense: nn.Module, pruned: nn.Module, batches: Batches) -> float:
    """What is only measured, without a recovery."""
    return recover("none", dense, pruned, (), batches).error_after


def images(count: int = 96) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(5))
