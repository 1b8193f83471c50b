"""Inputs without data: dead leaves, bent until the network's BatchNorms see the statistics they remember.

Overlapping shapes of random size and colour have the edges and the spectrum of photographs (Lee, Mumford & Huang
2001). A few steps of gradient descent on the pixels then match the mean and variance at every BatchNorm (as in
ZeroQ, Cai et al. 2020, arXiv 2001.00281, which starts from noise). The network's weights never change.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pruneport.compress.activations.calibration import BATCH, Calibration, in_memory
from pruneport.compress.activations.statistics import norms_of
from pruneport.compress.records import Calibrated
from pruneport.errors import PruningError
from pruneport.progress import Progress, Step, silent

__all__ = ["WITHOUT_INPUTS", "dead_leaves", "enough", "has_statistics", "require_statistics", "synthesise"]

_ENOUGH = 64  # inputs; each costs some tens of passes, and is shown in several views
_LARGE = 96  # pixels a side; smaller inputs have fewer places, and more are made
_ENOUGH_SMALL = 256
_VIEWS = ((False, 0, 0), (True, 13, 7), (False, 11, 21), (True, 5, 17))  # flipped or not, rolled down and right
_LEAVES = 60
_STEPS, _STEPS_SMALL = 30, 60
WITHOUT_INPUTS = "`criterion=l1` `ranking=uniform` `recover=none`"
"""Options that need no inputs."""
_PIXEL_RATE, _COLOUR_RATE = 0.07, 0.1
_BETAS = (0.2, 0.9)  # of Adam, whose usual ones forget too slowly for so few steps; see docs/definitions.md
_SHIFT = 2  # pixels that the inputs are rolled by, so that no pixel is fitted to one place


def enough(shape: tuple[int, int, int]) -> int:
    """How many inputs of a shape C, H, W to make."""
    return _ENOUGH if _is_large(shape) else _ENOUGH_SMALL


def _is_large(shape: Sequence[int]) -> bool:
    """Whether inputs of a shape C, H, W take long."""
    return min(shape[1:]) >= _LARGE


def has_statistics(network: nn.Module) -> bool:
    """Whether the network remembers what its training images looked like."""
    return bool(norms_of(network))


def require_statistics(network: nn.Module, without: str = WITHOUT_INPUTS) -> None:
    """Raise a ``PruningError`` where there is nothing to make inputs from; ``without`` are options that need none."""
    if not has_statistics(network):
        raise PruningError(
            "the network has no BatchNorm statistics to make synthetic inputs from; give images with "
            f"`calibration=FOLDER`, or choose {without}."
        )


def synthesise(
    network: nn.Module,
    shape: tuple[int, int, int],
    count: int,
    seed: int,
    progress: Progress = silent,
    *,
    held_out: int = 0,
    device: torch.device | None = None,
    batch: int = BATCH,
) -> Calibration:
    """Make inputs from the network's own BatchNorm statistics.

    Each is shown as it is, flipped and rolled: other equations for a least-squares fit at no cost. (ResNet-50 at 0.75
    of its multiply-accumulates, 64 inputs: without views its last stage has too few equations.)

    Args:
        network: In eval mode, with BatchNorms (see ``has_statistics``); it is only run.
        shape: C, H, W.
        count: How many inputs; four views of each are returned.
        seed: The same seed gives the same inputs.
        progress: Told how far it is.
        held_out: How many more are made to be held out, of which no view is among the others; each is shown once.
        device: Where the descent is done; the inputs come back to the CPU.
        batch: How many are made together, at most.

    Raises:
        PruningError: The network has no BatchNorm statistics.
    """
    require_statistics(network)
    generator = torch.Generator().manual_seed(seed)
    fixed = copy.deepcopy(network).requires_grad_(False).to(device or "cpu")
    sizes, extra = _sizes(count, batch), _sizes(held_out, batch)
    inputs = []
    parts = len(sizes) + len(extra)
    for number, size in enumerate([*sizes, *extra]):
        progress(Step(f"making synthetic inputs, batch {number + 1} of {parts}", number, parts))
        inputs.append(_matched(fixed, dead_leaves(size, shape, generator).to(device or "cpu"), generator).cpu())
    views = [_view(part, *view) for view in _VIEWS for part in inputs[: len(sizes)]]
    return Calibration(
        batches=in_memory(views),
        record=Calibrated(inputs="synthetic", count=count * len(_VIEWS)),
        heldout=in_memory(inputs[len(sizes) :]),
    )


def _sizes(count: int, batch: int) -> list[int]:
    """Sizes of as few batches as hold so many inputs, as equal as can be."""
    parts = -(-count // batch)
    return [count // parts + (number < count % parts) for number in range(parts)]


def _view(inputs: Tensor, flipped: bool, down: int, right: int) -> Tensor:
    return (inputs.flip(3) if flipped else inputs).roll((down, right), (2, 3))


def dead_leaves(count: int, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Images (count, C, H, W) of overlapping discs and bars with mean zero and deviation one, float32."""
    channels, height, width = shape
    rows = torch.arange(height)[:, None]
    columns = torch.arange(width)
    images = torch.empty(count, *shape)
    for image in images:
        image[:] = _colour(channels, generator)
        for _ in range(_LEAVES):
            size, y, x, angle, stretch, kind, rough = torch.rand(7, generator=generator).tolist()
            radius = 0.06 * max(height, width) / math.sqrt(0.04 + 0.96 * size)  # small ones are many
            down, right = rows - y * height, columns - x * width
            cosine, sine = math.cos(math.pi * angle), math.sin(math.pi * angle)
            along, across = down * cosine + right * sine, right * cosine - down * sine
            across = across / (0.3 + 2 * stretch)
            if kind < 0.5:
                inside = along.square() + across.square() < radius**2
            else:
                inside = (along.abs() < radius) & (across.abs() < radius)
            grain = 0.15 * rough * torch.randn(channels, height, width, generator=generator)
            image[:] = torch.where(inside, _colour(channels, generator) + grain, image)
    return (images - images.mean()) / images.std().clamp_min(1e-6)


def _colour(channels: int, generator: torch.Generator) -> Tensor:
    """Mostly grey, as photographs are: one brightness, and a little of its own for every channel."""
    grey = torch.randn(1, generator=generator)
    return (grey + 0.4 * torch.randn(channels, generator=generator))[:, None, None]


def _matched(network: nn.Module, start: Tensor, generator: torch.Generator) -> Tensor:
    """Fit pixels and colours to the BatchNorm statistics by gradient descent."""
    pixels = start.clone(memory_format=torch.channels_last).requires_grad_()
    gain = torch.zeros(1, start.shape[1], 1, 1, requires_grad=True, device=start.device)
    offset = torch.zeros_like(gain, requires_grad=True)
    rates = [{"params": [pixels], "lr": _PIXEL_RATE}, {"params": [gain, offset], "lr": _COLOUR_RATE}]
    optimiser = torch.optim.Adam(rates, betas=_BETAS)
    steps = _STEPS if _is_large(start.shape[1:]) else _STEPS_SMALL
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        shift = torch.randint(-_SHIFT, _SHIFT + 1, (2,), generator=generator).tolist()
        shown = (pixels * gain.exp() + offset).roll(shift, (2, 3))
        with _Mismatch(network) as mismatch:
            network(shown.flip(3) if step % 2 else shown)
        optimiser.zero_grad()
        mismatch.total().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return (pixels * gain.exp() + offset).detach()


class _Mismatch:
    """How far a batch's statistics are from the remembered ones, averaged over the BatchNorms."""

    def __init__(self, network: nn.Module) -> None:
        self._norms = [*norms_of(network).values()]
        self._terms: list[Tensor] = []

    def __enter__(self) -> _Mismatch:
        self._handles: list[Any] = [norm.register_forward_pre_hook(self._add) for norm in self._norms]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def total(self) -> Tensor:
        return torch.stack(self._terms).mean()

    def _add(self, norm: Any, inputs: tuple[Tensor, ...]) -> None:
        """Note how far one BatchNorm's inputs are from what it remembers."""
        mean, variance = _Moments.apply(inputs[0], norm.running_mean)
        wanted = norm.running_var + norm.eps
        shift = (mean - norm.running_mean).square() / wanted
        scale = ((variance + norm.eps) / wanted).log().square()
        self._terms.append((shift + scale / 2).mean())


class _Moments(torch.autograd.Function):
    """Mean and variance (C,) of activations (B, C, …), in a few passes over them; torch's variance takes many.

    The variance is the mean square about what the BatchNorm remembers, less the squared distance of the mean to that,
    which is small or soon will be: little is lost to rounding.
    """

    @staticmethod
    def forward(context: Any, inputs: Tensor, about: Tensor) -> tuple[Tensor, Tensor]:
        """``about`` (C,) is near to the mean."""
        places = [0, *range(2, inputs.ndim)]
        distance = inputs - _by_channel(about, inputs)
        shift = distance.mean(places)
        variance = (distance.square_().mean(places) - shift.square()).clamp_min(0)
        mean = about + shift
        context.save_for_backward(inputs, mean)
        return mean, variance

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The derivative by an entry is ``1 / n`` of the mean and ``2 (entry - mean) / n`` of the variance."""
        inputs, mean = context.saved_tensors
        count = inputs.numel() / len(mean)
        by_mean, slope = gradients[0] / count, 2 * gradients[1] / count
        start = _by_channel(by_mean - slope * mean, inputs)
        return torch.addcmul(start, inputs, _by_channel(slope, inputs)), None


def _by_channel(values: Tensor, inputs: Tensor) -> Tensor:
    """One number a channel in a shape that goes with activations (B, C, …)."""
    return values.reshape(-1, *[1] * (inputs.ndim - 2))
