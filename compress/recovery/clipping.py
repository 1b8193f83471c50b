"""Activations that clip, such as ReLU: which layers they are behind, and the targets that they leave open.

What such an activation gives does not say how far below zero it was given, so that a fit need not either. Where the
dense network is below zero, all that is asked of the pruned one is to be below zero, too. Zhang et al. 2015 (arXiv
1505.06798, section 3.2) fit the outputs of ReLUs, with an auxiliary variable; we bound the squared error from above by
one with moved targets, whose minimum is a least-squares solution with the same left-hand side (majorise, minimise).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pruneport.compress.hooks import hooks_restored
from pruneport.models.outputs import tensor_leaves

__all__ = ["ADDITIONS", "Clip", "Scale", "clips_recorded", "open_targets"]

ADDITIONS = {torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__iadd__, Tensor.__radd__}
_NORMS = {F.batch_norm, torch.batch_norm}
_RELUS = {F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}
_HARDTANHS = {F.hardtanh, F.hardtanh_}


class Clip(NamedTuple):
    """An activation that does to what is beyond a bound what it does to the bound.

    Attributes:
        low: The lower bound.
        high: The upper one.
        summed: Whether something is added to what the layer gives before.
    """

    low: float
    high: float
    summed: bool = False


@dataclass(frozen=True)
class Scale:
    """What is done to the channels of a layer before they are clipped: times ``gain``, plus ``offset``; (channels,)."""

    gain: Tensor
    offset: Tensor


def open_targets(clip: Clip, scale: Scale, targets: Tensor, outputs: Tensor, added: Tensor | None) -> Tensor:
    """Targets moved to where the outputs are, as far as the activation does not tell them apart.

    Args:
        clip: The activation.
        scale: Between the layer and the activation; channels without gain keep their targets.
        targets: Of the layer's outputs, (rows, channels).
        outputs: What the layer gives at present.
        added: What is added behind ``scale``, such as a shortcut; None: nothing that is known, and where there is
            something, targets stay.

    Returns:
        (rows, channels).
    """
    if added is None and clip.summed:
        return targets
    gain = scale.gain.to(targets)
    nothing = scale.offset.to(targets) if added is None else added + scale.offset.to(targets)
    wanted = torch.addcmul(nothing, targets, gain)
    change = (outputs - targets).mul_(gain)  # of what is clipped, were the targets to move as far as the outputs
    slack = clip.low - wanted
    moved = torch.minimum(change, slack).mul_(slack >= 0)
    if not math.isinf(clip.high):
        slack = clip.high - wanted
        moved += torch.maximum(change, slack).mul_(slack <= 0)
    return torch.addcmul(targets, moved, torch.where(gain == 0, 0, 1 / gain))


@contextmanager
def clips_recorded(network: nn.Module, norms: Mapping[str, Any]) -> Iterator[dict[str, Clip]]:
    """Yield a dictionary that holds, at the end, the clipping activation behind each convolution or linear layer.

    Between them may be the layer's norm and one addition, in this order; nobody else reads what is between. Layers that
    run more than once have none.

    Args:
        network: To run meanwhile, once.
        norms: From ``norms_recorded``: other norms than these end the search.
    """
    found: dict[str, Clip] = {}
    followed = _Followed(norms)
    with hooks_restored(network), followed:
        for name, layer in network.named_modules():
            if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
                layer.register_forward_hook(followed.hook(name))
        yield found
    found.update(followed.clips())


@dataclass
class _Branch:
    """What became of a layer's output so far."""

    value: Tensor | None
    normed: bool = False
    summed: bool = False
    clip: Clip | None = None


class _Followed(TorchFunctionMode):
    """Follows outputs from function to function."""

    def __init__(self, norms: Mapping[str, Any]) -> None:
        super().__init__()
        self._norms = norms
        self._branches: dict[str, _Branch] = {}
        self._read: list[tuple[str, Tensor]] = []  # what a branch went through, which nobody may read again

    def hook(self, name: str) -> Any:
        """For the layer of this name."""

        def start(layer: nn.Module, inputs: Any, output: Tensor) -> None:
            again = name in self._branches
            self._branches[name] = _Branch(None if again else output)

        return start

    def clips(self) -> dict[str, Clip]:
        """What was found."""
        return {name: branch.clip for name, branch in self._branches.items() if branch.clip is not None}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if tensor_leaves(result):
            given = tensor_leaves([args, kwargs or {}])
            for name, value in self._read:
                if any(value is tensor for tensor in given):
                    self._branches[name] = _Branch(None)
            for name, branch in self._branches.items():
                if branch.value is not None and any(branch.value is tensor for tensor in given):
                    self._go_on(name, branch, function, args, kwargs or {}, result)
        return result

    def _go_on(self, name: str, branch: _Branch, function: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Through one function that reads the branch."""
        before, branch.value = branch.value, None
        if function in ADDITIONS and not branch.summed:
            branch.value, branch.summed = result, True
        elif function in _NORMS and name in self._norms and not (branch.normed or branch.summed):
            branch.value, branch.normed = result, True
        elif function is F.dropout:
            branch.value = result
        elif branch.normed == (name in self._norms):
            clip = _clip_of(function, args, kwargs)
            branch.clip = None if clip is None else clip._replace(summed=branch.summed)
        if before is not None and before is not result:
            self._read.append((name, before))


def _clip_of(function: Any, args: Any, kwargs: Any) -> Clip | None:
    """What a function does, if it clips."""
    if function in _RELUS:
        return Clip(0.0, math.inf)
    if function is F.relu6:
        return Clip(0.0, 6.0)
    if function in _HARDTANHS:
        low = args[1] if len(args) > 1 else kwargs.get("min_val", -1.0)
        high = args[2] if len(args) > 2 else kwargs.get("max_val", 1.0)
        return Clip(float(low), float(high))
    return None
