"""Single steps of an optimizer, placed by Lightning Fabric on one CPU or several GPUs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pruneport.compress.devices import seed_device
from pruneport.compress.finetune.optimizers import learning_rate_at
from pruneport.compress.finetune.state import restore_optimizer
from pruneport.compress.options import AcceleratorName, PrecisionName

__all__ = ["Stepper", "open_fabric"]


def open_fabric(accelerator: AcceleratorName, devices: int, precision: PrecisionName = "auto") -> Any:
    """Fabric for a training: in bf16 mixed precision on GPUs and float32 elsewhere, where no other is asked for."""
    from lightning_fabric import Fabric  # takes seconds to import

    # It advises, on a GPU, to set an option of torch's, which is not the user's to set.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    on_gpu = accelerator == "cuda" or (accelerator == "auto" and torch.cuda.is_available())
    chosen = {"32": "32-true", "bf16": "bf16-mixed"}.get(precision)
    return Fabric(
        accelerator=accelerator,
        devices=devices,
        strategy="ddp_spawn" if devices > 1 else "auto",
        precision=chosen or ("bf16-mixed" if on_gpu else "32-true"),  # type: ignore[arg-type]
    )


class Stepper:
    """A network and its optimizer in one of Fabric's processes.

    Args:
        fabric: Places them.
        network: In the mode that it is trained in; it is changed in place.
        optimizer: Its parameter groups remember their highest learning rates as ``highest``.
        momenta: What the optimizer has gathered so far.
        placed: The network is on its device already, which may be one that Fabric does not know.

    Attributes:
        network: As it was given, on its device.
        model: The same as Fabric wraps it: what is run.
        optimizer: As it was given.
    """

    def __init__(
        self,
        fabric: Any,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        momenta: Mapping[str, Tensor],
        *,
        placed: bool = False,
    ) -> None:
        self._fabric = fabric
        self.network, self.optimizer = network.to(memory_format=torch.channels_last), optimizer
        self.model, self._wrapped = fabric.setup(self.network, optimizer, move_to_device=not placed)
        self._device = next(self.network.parameters()).device
        restore_optimizer(self.network, optimizer, momenta)

    def step(self, loss_of: Callable[[nn.Module], Tensor], share: float, warmup: float, seed: int) -> float:
        """Take one step down the loss.

        Args:
            loss_of: Runs the model that it is given, and returns the loss.
            share: Of the training that is done; gives the learning rate.
            warmup: Share of the training in which the rate rises.
            seed: Drop-outs follow from it.

        Returns:
            The loss before the step, over all processes; it may be no finite number.
        """
        seed_device(self._device, seed)
        for group in self.optimizer.param_groups:
            group["lr"] = group["highest"] * learning_rate_at(share, warmup)
        loss = loss_of(self.model)
        self.optimizer.zero_grad()
        self._fabric.backward(loss)
        self._wrapped.step()
        return float(self._fabric.all_reduce(loss.detach()))
