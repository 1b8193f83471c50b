"""What a training needs to go on, and its state file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pruneport.compress.state_file import open_state, write_state_file
from pruneport.compress.surgery.plan import Plan

__all__ = ["Event", "TrainState", "optimizer_tensors", "read_state", "restore_optimizer", "write_state"]

_FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Event:
    """One measurement on the test images.

    Attributes:
        step: Steps of the optimizer so far.
        flops: Training FLOPs so far.
        error: Share of the test images classified wrong.
        loss: Mean training loss since the event before.
        macs: Multiply-accumulates of the network at this step.
        seconds: Time spent on training steps.
    """

    step: int
    flops: float
    error: float
    loss: float
    macs: int
    seconds: float


@dataclass(kw_only=True)
class TrainState:
    """A training at one moment.

    Attributes:
        plan: What has been pruned so far.
        weights: The network's state dict.
        momenta: The optimizer's state: "QUANTITY/PARAMETER" -> tensor.
        config: What the training was started with; another one does not go on with it.
        losses: Sum and number of the losses since the last event.
        average: Exponential average of the training loss, and the level that the schedule waits for.
        cuts: How many it has made, the last one at ``cut_step``.
    """

    plan: Plan
    weights: dict[str, Tensor]
    config: dict[str, Any]
    momenta: dict[str, Tensor] = field(default_factory=dict)
    step: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    events: list[Event] = field(default_factory=list)
    losses: list[float] = field(default_factory=lambda: [0.0, 0])
    average: float | None = None
    level: float | None = None
    cuts: int = 0
    cut_step: int = 0


_PLAIN = ("config", "step", "flops", "seconds", "losses", "average", "level", "cuts", "cut_step")


def write_state(path: Path, state: TrainState) -> None:
    """Write the state, whole or not at all.

    Raises:
        OSError: The disk is full or the folder cannot be written; what was there stays.
    """
    content = {name: getattr(state, name) for name in _PLAIN}
    content["events"] = [asdict(event) for event in state.events]
    tensors = {"weights": state.weights, "momenta": state.momenta}
    write_state_file(path, _FORMAT_VERSION, state.plan, content, tensors)


def read_state(path: Path) -> TrainState:
    """Read a state.

    Raises:
        CheckpointError: It is not one, or of a newer format.
    """
    with open_state(path, "a training", _FORMAT_VERSION, "weights") as file:
        return TrainState(
            plan=file.plan,
            weights=file.tensors["weights"],
            momenta=file.tensors.get("momenta", {}),
            events=[Event(**event) for event in file.content["events"]],
            **{name: file.content[name] for name in _PLAIN},
        )


def optimizer_tensors(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by quantity and parameter name."""
    return {
        f"{quantity}/{name}": value
        for name, parameter in network.named_parameters()
        for quantity, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(network: nn.Module, optimizer: torch.optim.Optimizer, momenta: Mapping[str, Tensor]) -> None:
    """Give the optimizer the state that ``optimizer_tensors`` returned.

    Momenta are laid out in memory as their parameters are: torch's fused steps walk through both without a look at
    their strides.
    """
    parameters = dict(network.named_parameters())
    for key, value in momenta.items():
        quantity, _, name = key.partition("/")
        parameter = parameters[name]
        counts = quantity == "step"  # kept on the CPU, whatever the parameter's device
        optimizer.state[parameter][quantity] = value if counts else torch.empty_like(parameter).copy_(value)
