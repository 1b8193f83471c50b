"""What pruned inputs say of the dense ones, and the solves that start from it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pruneport.compress.recovery.input_channels import InputChannels
from pruneport.compress.recovery.reconstruct import reconstruct
from pruneport.compress.resize.layers import narrow
from recovery_cases import batches_of

KEPT = [0, 2, 3, 6]


def told_by_the_kept(*sizes: int, seed: int = 0) -> Tensor:
    """Inputs (8, 7, ...) whose removed channels are sums of kept ones, the same at every place."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(8, 7, *sizes, generator=generator)
    mixing = torch.randn(3, 4, generator=torch.Generator().manual_seed(7))
    inputs[:, [1, 4, 5]] = torch.einsum("rk,bk...->br...", mixing, inputs[:, KEPT])
    return inputs


@pytest.mark.parametrize(("layer", "sizes"), [(nn.Conv1d, (30,)), (nn.Conv2d, (9, 8)), (nn.Conv3d, (5, 4, 6))])
def test_a_kernel_reads_in_the_kept_channels_what_they_tell_of_the_others(
    layer: type[nn.Conv1d | nn.Conv2d | nn.Conv3d], sizes: tuple[int, ...]
) -> None:
    channels = InputChannels(KEPT, batches=2)
    seen = [told_by_the_kept(*sizes, seed=1), told_by_the_kept(*sizes, seed=2)]
    dense, pruned = layer(7, 5, 3, padding=1, bias=False), layer(4, 5, 3, padding=1, bias=False)
    for inputs in seen:
        channels.wanted(dense, inputs)
    for batch, inputs in enumerate(seen):
        channels.given(pruned, batch, inputs[:, KEPT])
    pruned.weight.data = channels.read(dense.weight.detach(), ridge=1e-9).float()
    others = told_by_the_kept(*sizes, seed=3)
    torch.testing.assert_close(pruned(others[:, KEPT]), dense(others), rtol=1e-3, atol=1e-3)


def test_channels_that_tell_of_nothing_leave_the_weights_as_they_are() -> None:
    channels = InputChannels(KEPT, batches=1)
    inputs = torch.randn(64, 7, 40, 40, generator=torch.Generator().manual_seed(0))
    channels.wanted(nn.Conv2d(7, 5, 3), inputs)
    channels.given(nn.Conv2d(4, 5, 3), 0, inputs[:, KEPT])
    weight = torch.randn(5, 7, 3, 3)
    torch.testing.assert_close(channels.read(weight, ridge=0.1).float(), weight[:, KEPT], rtol=0, atol=0.1)


def test_without_an_intercept_the_map_is_fitted_about_zero() -> None:
    channels = InputChannels(KEPT, batches=1)
    inputs = 1 + torch.rand(8, 7, 6, 6, generator=torch.Generator().manual_seed(0))
    channels.wanted(nn.Conv2d(7, 5, 3), inputs)
    channels.given(nn.Conv2d(4, 5, 3), 0, inputs[:, KEPT])
    rows = inputs.movedim(1, -1).flatten(0, -2).double().numpy()
    for centred in (True, False):
        mean = rows.mean(0) * centred
        told, *_ = np.linalg.lstsq((rows - mean)[:, KEPT], rows - mean, rcond=None)
        found = channels.read(torch.eye(7)[:, :, None], ridge=1e-9, centred=centred)[..., 0]
        torch.testing.assert_close(found, torch.from_numpy(told).T, rtol=0, atol=1e-4)


def test_two_inputs_are_enough_where_the_kept_channels_tell_all() -> None:
    """The ridge holds hundreds of weights near to where the solve starts: to outputs that are the dense ones."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)

        def forward(self, inputs: Tensor) -> Tensor:
            outputs: Tensor = self.second(self.first(inputs).relu())
            return outputs

    torch.manual_seed(0)
    dense = Network().eval()
    with torch.no_grad():  # each of the last four channels is twice one of the first
        dense.first.weight[4:] = 2 * dense.first.weight[:4]
        dense.first.bias[4:] = 2 * dense.first.bias[:4]
    pruned = copy.deepcopy(dense)
    kept = {"first": {"out": [0, 1, 2, 3]}, "second": {"in": [0, 1, 2, 3]}}
    for name, keep in kept.items():
        narrow(pruned, name, keep)
    others = torch.randn(4, 3, 6, 6)

    def error() -> float:
        with torch.no_grad():
            return float((pruned(others) - dense(others)).square().mean() / dense(others).var())

    before = error()
    reconstruct(dense, pruned, kept, batches_of(torch.randn(2, 3, 6, 6), 1), ridge=0.01)
    assert before > 0.1
    assert error() < 1e-5
