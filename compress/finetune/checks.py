"""What is checked before a training begins."""

from __future__ import annotations

import math

import torch

from pruneport.compress.options import AcceleratorName, PruneOptions, TrainOptions
from pruneport.compress.surgery.plan import Plan
from pruneport.errors import InputError, TrainingError
from pruneport.models.options import refuse_idle

__all__ = ["check_representation", "check_training"]

_MOST_PROCESSES = 256  # far more than help, and few enough that no machine is brought down by a slip


def check_training(options: TrainOptions) -> None:
    """Check what needs no network.

    Raises:
        InputError: A number is out of range, two lengths are given, or there is no such device.
    """
    lengths = [name for name in ("epochs", "steps", "budget") if getattr(options, name) is not None]
    if len(lengths) > 1:
        raise InputError(
            f"{' and '.join(f'`{name}`' for name in lengths)} were given; the training's length comes from one of them."
        )
    for name in ("epochs", "budget"):
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"`{name}` is {value:g}; expected a number above 0.")
    at_least = {"steps": 1, "evaluations": 0, "save_every": 0, "workers": 0, "distill": 0}
    at_least |= {"devices": 1, "cuts": 1, "weight_decay": 0, "learning_rate": 0, "head_rate": 0}
    for name, least in at_least.items():
        value = getattr(options, name)
        if value is not None and not least <= value < math.inf:
            raise InputError(f"`{name}` is {value}; expected at least {least}.")
    for name in ("workers", "devices"):
        if (value := getattr(options, name)) > _MOST_PROCESSES:
            raise InputError(f"`{name}` is {value}; expected at most {_MOST_PROCESSES}: each is a process of its own.")
    if not 0 <= options.warmup < 1:
        raise InputError(f"`warmup` is {options.warmup}; expected a share of the training, from 0 to below 1.")
    if options.batch_size < 2 * options.devices:
        raise InputError(
            f"`batch_size` is {options.batch_size} on {options.devices} device(s); expected at least 2 on each, "
            "since BatchNorm needs two."
        )
    if options.keep_head:
        why = "for a new output layer, and `keep_head` keeps the one that is there"
        refuse_idle(options, ["head_rate"], why, "Leave out `keep_head`")
    gpus = _gpus(options.accelerator)
    if options.accelerator != "cpu" and (gpus or options.accelerator != "auto") and gpus < options.devices:
        raise InputError(
            f"`accelerator={options.accelerator}` `devices={options.devices}`: torch sees {gpus} GPU(s). Use fewer, "
            "`accelerator=cpu`, or a torch build and driver that see them."
        )


def _gpus(accelerator: AcceleratorName) -> int:
    """How many GPUs of a kind torch sees; of ``auto`` those of the kind that Fabric takes."""
    apples = int(torch.backends.mps.is_available())
    if accelerator == "mps" or (accelerator == "auto" and apples):
        return apples
    return torch.cuda.device_count()


def check_representation(plan: Plan, pruning: PruneOptions | None) -> None:
    """Raise where the network's representation is, or will be, narrower than its teacher's."""
    narrower = any(group.role == "representation" and group.kept is not None for group in plan.groups)
    if narrower or (pruning is not None and pruning.prune_representation):
        raise TrainingError(
            "`distill` compares representations, and this network's is pruned; leave out `distill`, or prune without "
            "`prune_representation`."
        )
