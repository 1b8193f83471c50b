"""How a live network is recorded: by the name of its class and the hash of its state."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pruneport.models.inputs import InputShape, check_seed, inputs_of
from pruneport.models.record import Live, Source

__all__ = ["live_source", "state_sha256"]


def live_source(network: nn.Module, shape: InputShape, seed: int = 0) -> Source:
    """The record of a network in memory; it names no factory, since nobody knows how the network was built.

    It counts as trained, unless it has BatchNorms and all of them still have their first statistics.

    Raises:
        InputError: The seed is none.
    """
    kind, takes = type(network), inputs_of(shape)
    return Source(
        spec=f"{kind.__module__}:{kind.__qualname__}",
        model_args={},
        input_shape=takes.image_shape,
        inputs=takes if takes.image_shape is None else None,
        seed=check_seed(seed),
        live=Live(trained=_seems_trained(network), state_sha256=state_sha256(network.state_dict())),
    )


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """The hash of every tensor's name, type, shape and bits."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name]
        if isinstance(tensor, Tensor):  # what modules add as their extra state may be anything
            digest.update(f"{name}\n{tensor.dtype}\n{tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _seems_trained(network: nn.Module) -> bool:
    norms = [
        module
        for module in network.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
    ]
    return not norms or any(bool(norm.running_mean.any()) for norm in norms)  # type: ignore[union-attr]
