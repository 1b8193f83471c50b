"""Least squares in a stream: normal equations that grow with a layer's inputs, not with the data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "Equations",
    "add_ridge",
    "by_place",
    "chosen_places",
    "float64_device",
    "input_rows",
    "is_plain",
    "output_rows",
    "patch_rows",
    "ridge_of",
]

_MOST_UNKNOWNS = 8192  # a covariance of 0.5 GB
_PART = 4096  # rows whose products are summed in float32
_LEAST_VARIANCE = 1e-3  # of an input, relative to the mean
_HELD = 6  # of the ridge: equations an unknown that the weights of before are worth
_COLUMNS = 512  # of the matrix of normal equations that are made at once


def float64_device(device: torch.device) -> torch.device:
    """Where float64 is computed for what lies on a device: there, or on the CPU where the device has none."""
    has_none = device.type == "mps" or (
        device.type == "xpu" and not torch.xpu.get_device_properties(device).has_fp64  # of Intel's Arc boards
    )
    return torch.device("cpu") if has_none else device


class Equations:
    """Normal equations of ``inputs @ weight + intercept = targets``, summed in float64.

    Rows of float32, and their products, are summed over at most 4096 rows in float32. Relative to the product of two
    columns' norms the error of an entry is then at most 4096 x 2^-24 = 2.4e-4 in theory (Higham 2002, section 3.1), and
    some 1e-6 of what is met. The ridges of what is solved are 1e-4 and more.

    Args:
        inputs: Unknowns of one output.
        outputs: Right-hand sides.
        device: Of what is added; see ``float64_device``.
    """

    def __init__(self, inputs: int, outputs: int, device: torch.device | None = None) -> None:
        self.rows = 0
        self._total = 0.0  # of the rows' weights
        self._device = float64_device(device or torch.device("cpu"))
        self._gram, self._cross, self._input_sum, self._target_sum = (
            torch.zeros(sizes, dtype=torch.float64, device=self._device)
            for sizes in ((inputs, inputs), (inputs, outputs), (inputs,), (outputs,))
        )

    def add(self, inputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> None:
        """Add equations: inputs (rows, inputs), targets (rows, outputs); what each counts (rows,), else one."""
        inputs = inputs.to(self._device)
        weighted = _weighted(inputs, weights)
        for part, counted in zip(torch.split(inputs, _PART), torch.split(weighted, _PART), strict=True):
            for start in range(0, inputs.shape[1], _COLUMNS):  # on and below the diagonal; the rest is the same
                end = start + _COLUMNS
                self._gram[start:end, :end] += counted[:, start:end].T @ part[:, :end]
            self._input_sum += counted.sum(0)
        self._total += len(inputs) if weights is None else float(weights.sum(dtype=torch.float64))
        self.rows += len(inputs)
        self.add_targets(inputs, targets, weights)

    def add_targets(self, inputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> None:
        """Add the right-hand sides alone, after ``forget_targets``; all that was added must be added again."""
        inputs, targets = inputs.to(self._device), _weighted(targets.to(self._device), weights)
        for part, wanted in zip(torch.split(inputs, _PART), torch.split(targets, _PART), strict=True):
            self._cross += part.T @ wanted
            self._target_sum += wanted.sum(0)

    def forget_targets(self) -> None:
        """Keep the left-hand sides only."""
        self._cross.zero_()
        self._target_sum.zero_()

    def moments(self, centred: bool = True) -> tuple[Tensor, Tensor]:
        """Covariance (inputs, inputs) and mean (inputs,) of the inputs, float64; about zero where not ``centred``."""
        mean = self._input_sum / self._total * centred
        gram = self._gram.tril() / self._total
        gram += gram.tril(-1).T
        return gram.addr_(mean, mean, alpha=-1), mean

    def solve(self, start: Tensor, ridge: float, centred: bool = True) -> tuple[Tensor, Tensor]:
        """Minimise the weighted mean squared error plus ``ridge`` times the squared distance to ``start``.

        Args:
            start: Weights (inputs, outputs) to stay near to where the data say little.
            ridge: Relative to the variance of each input, or to a thousandth of their mean where that is more.
            centred: Whether there is an intercept; else it is zero, and the weights alone are fitted.

        Returns:
            Weight (inputs, outputs) and intercept (outputs,), float64.
        """
        gram, mean_in = self.moments(centred)
        mean_out = self._target_sum / self._total * centred
        cross = (self._cross / self._total).addr_(mean_in, mean_out, alpha=-1)
        strength = add_ridge(gram, ridge)
        weight = torch.cholesky_solve(cross + strength[:, None] * start.to(cross), torch.linalg.cholesky(gram))
        return weight, mean_out - mean_in @ weight


def _weighted(rows: Tensor, weights: Tensor | None) -> Tensor:
    return rows if weights is None else rows * weights.to(rows)[:, None]


def add_ridge(covariance: Tensor, ridge: float) -> Tensor:
    """Add to each input's variance in place ``ridge`` times it, or a thousandth of their mean where that is more.

    Args:
        covariance: (inputs, inputs).
        ridge: Relative.

    Returns:
        What was added, (inputs,).
    """
    variances = covariance.diagonal()
    added = ridge * variances.clamp_min(max(_LEAST_VARIANCE * float(variances.mean()), 1e-12))
    variances.add_(added)
    return added


def ridge_of(unknowns: int, equations: int) -> float:
    """How strongly the weights of a layer are held: by six times its unknowns over its equations.

    The best ridge is that ratio times the noise over what the weights explain (Hoerl, Kennard & Baldwin 1975, Ridge
    regression: some simulations). We take one number for both, found by trying; it also makes up for the places of one
    image being alike, so that equations say less than their number.

    Args:
        unknowns: Inputs of one output.
        equations: Their number; one image gives many. Of a layer that was given nothing there are none.
    """
    return _HELD * unknowns / max(1, equations)


def patch_rows(
    inputs: Tensor,
    sizes: Sequence[int],
    places: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """What a convolution reads at some of its output places, as the left-hand sides of equations.

    Args:
        inputs: (B, C, H, W); of convolutions in one and three dimensions (B, C, L) and (B, C, D, H, W).
        sizes: H', W' of its output.
        places: Flat indices into H' x W'.
        kernel: With stride, padding and dilation: of the convolution, such as (height, width).
        stride: See kernel.
        padding: See kernel.
        dilation: See kernel.

    Returns:
        (rows, C * kH * kW), rows = B * places.
    """
    padded = F.pad(inputs, [size for size in reversed(padding) for _ in range(2)])
    count = len(kernel)
    index = torch.zeros(1, dtype=torch.long, device=inputs.device)
    for dim, start in enumerate(torch.unravel_index(places.to(inputs.device), tuple(sizes))):
        steps = torch.arange(kernel[dim], device=inputs.device).reshape(
            [-1 if other == dim else 1 for other in range(count)]
        )
        index = index * padded.shape[2 + dim]
        index = index + start.reshape(-1, *[1] * count) * stride[dim] + steps * dilation[dim]
    by_channel = padded.flatten(2).transpose(1, 2).contiguous()  # whole runs of channels are copied
    patches = by_channel.index_select(1, index.flatten()).reshape(len(inputs), len(places), -1, inputs.shape[1])
    return patches.transpose(2, 3).flatten(2).flatten(0, 1)


def is_plain(layer: nn.Module) -> bool:
    """Whether the layer is a linear map whose weights can be solved for: linear, or a usual convolution."""
    if isinstance(layer, nn.Linear):
        return layer.in_features <= _MOST_UNKNOWNS
    return (
        isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and layer.in_channels * math.prod(layer.kernel_size) <= _MOST_UNKNOWNS
    )


def by_place(layer: nn.Module, inputs: Tensor) -> Tensor:
    """What a layer reads as (places, channels): a linear layer's channels are last, all others' are second."""
    return (inputs if isinstance(layer, nn.Linear) else inputs.movedim(1, -1)).flatten(0, -2)


def chosen_places(layer: nn.Module, output: Tensor, limit: int, generator: torch.Generator) -> Tensor:
    """Random output places of a plain layer, flat, that give no more than about ``limit`` rows; none of a linear one.

    Args:
        layer: Of all rows of a linear one use is made.
        output: Of the layer, for its sizes.
        limit: Rows.
        generator: Chooses.
    """
    if isinstance(layer, nn.Linear):
        return torch.empty(0, dtype=torch.long)
    places = math.prod(output.shape[2:])
    return torch.randperm(places, generator=generator)[: max(1, min(places, limit // len(output)))]


def input_rows(layer: Any, inputs: Tensor, sizes: Sequence[int], places: Tensor) -> Tensor:
    """What a plain layer reads at the places of its output, whose sizes behind the channels are given; a copy."""
    if isinstance(layer, nn.Linear):
        return by_place(layer, inputs).clone()
    return patch_rows(inputs, sizes, places, layer.kernel_size, layer.stride, layer.padding, layer.dilation)


def output_rows(layer: nn.Module, output: Tensor, places: Tensor) -> Tensor:
    """What a plain layer gives at these places, as rows; a copy."""
    if isinstance(layer, nn.Linear):
        return by_place(layer, output).clone()
    by_channel = output.flatten(2).transpose(1, 2)
    return by_channel.index_select(1, places.to(output.device)).flatten(0, 1)
