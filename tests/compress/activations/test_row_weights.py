"""What rows count: against Jacobians that are computed entry by entry in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pruneport.compress.activations.row_weights import RowWeights
from recovery_cases import batches_of, network, solved_behind

FLOOR = 0.1


def _norms(behind: nn.Module, given: Tensor, channel: int) -> Tensor:
    """Of the Jacobian of one output at each place of one input, (places,)."""
    jacobian = torch.autograd.functional.jacobian(lambda x: behind.double()(x.clone()), given[None].double())
    return jacobian.square().sum((0, 1, 2)).sum(channel).sqrt().flatten().detach()


@pytest.mark.parametrize("size", [16, 5, 3])
def test_weights_are_the_jacobians_norms_of_a_network_with_one_output(size: int) -> None:
    """Where there is one output, the estimate by a random sign is exact; whatever the batches."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        body = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(5, 3, 3, stride=2), nn.Sigmoid(), nn.Flatten())
        dense = nn.Sequential(nn.Conv2d(2, 5, 3), body, nn.Linear(48, 1), nn.Tanh()).eval()
        inputs = torch.randn(16, 2, 11, 11)
    batches = batches_of(inputs, size)
    weights = RowWeights(dense, ["0"], batches)
    with torch.no_grad():
        given = dense[0](inputs)
    behind = nn.Sequential(*dense[1:])
    expected = torch.stack([_norms(behind, one, channel=0) for one in given])
    expected = (expected / expected.mean() + FLOOR) / (1 + FLOOR)
    places = torch.tensor([3, 80, 17, 0])
    found = [weights.of("0", number, places) for number in range(len(batches))]
    together = torch.cat([part for part in found if part is not None]).reshape(16, 4).double()
    torch.testing.assert_close(together, expected[:, places], rtol=0.02, atol=1e-3)  # of bfloat16
    assert all(parameter.grad is None for parameter in dense.parameters())


def test_tokens_are_weighed_too() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dense = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Flatten(), nn.Linear(30, 1)).eval()
        inputs = torch.randn(8, 5, 4)
    weights = RowWeights(dense, ["0", "3"], batches_of(inputs, 8))
    with torch.no_grad():
        given = dense[0](inputs)
    expected = torch.stack([_norms(nn.Sequential(*dense[1:]), one, channel=1) for one in given])
    found = weights.of("0", 0, torch.empty(0, dtype=torch.long))
    assert found is not None
    whole = (expected / expected.mean() + FLOOR) / (1 + FLOOR)
    torch.testing.assert_close(found.double(), whole.flatten(), rtol=0.02, atol=1e-3)


def test_a_mirror_image_has_the_weights_of_its_image() -> None:
    """At mirrored places of maps; of tokens, whose order says nothing of places, each counts what all do on average."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        maps = nn.Sequential(nn.Conv2d(2, 5, 3), nn.Sigmoid(), nn.Flatten(2), nn.Linear(24, 4), nn.Flatten())
        dense = nn.Sequential(*maps, nn.Linear(20, 1)).eval()
        inputs = torch.randn(12, 2, 8, 6)
    weights = RowWeights(dense, ["0", "3"], batches_of(inputs, 4))
    every = torch.arange(24)
    for batch in range(3):
        image, mirrored = weights.of("0", batch, every), weights.of("0", 3 + batch, every)
        assert image is not None
        assert mirrored is not None
        assert torch.equal(mirrored.reshape(4, 6, 4), image.reshape(4, 6, 4).flip(2))
        tokens, alike = (weights.of("3", number, every[:0]) for number in (batch, 3 + batch))
        assert tokens is not None
        assert alike is not None
        torch.testing.assert_close(alike.reshape(4, 5), tokens.reshape(4, 5).mean(1, keepdim=True).expand(4, 5))


class _NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Any:
        raise NotImplementedError("not to be differentiated")


class _Last(nn.Module):
    def __init__(self, inner: nn.Module, kind: str) -> None:
        super().__init__()
        self.inner, self.kind = inner, kind

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        if self.kind == "raises":
            return _NoGradient.apply(y)  # type: ignore[no-any-return]
        return y.round() if self.kind == "zero" else y.detach()


@pytest.mark.parametrize("kind", ["raises", "zero", "detached"])
def test_without_a_gradient_all_rows_weigh_the_same(kind: str) -> None:
    inner = network()
    dense = _Last(inner, kind).eval()
    batches = batches_of(torch.rand(16, 1, 8, 8), 8)
    weights = RowWeights(dense, ["inner.blocks.0.conv1"], batches)
    assert weights.of("inner.blocks.0.conv1", 0, torch.arange(3)) is None
    assert not weights.known


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no"), RuntimeError("MPS backend out of memory")])
def test_memory_that_runs_out_does_not_say_that_there_is_no_gradient(error: Exception) -> None:
    """Who runs it goes on with smaller batches."""

    def crowded(*_: object) -> None:
        raise error

    dense = network()
    dense.register_forward_pre_hook(crowded)
    with pytest.raises(type(error)) as raised:
        RowWeights(dense, ["blocks.0.conv1"], batches_of(torch.rand(16, 1, 8, 8), 8))
    assert raised.value is error


class _LeftHalf(nn.Module):
    """Answers by the left half of a picture alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 6, 1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        read: Tensor = self.second(torch.sigmoid(self.first(x)))[..., :4]
        answer: Tensor = self.last(read.square().mean((2, 3)))
        return answer


def test_the_fit_is_better_where_the_outputs_read() -> None:
    """Against the plain fit to all places, by numpy; the halves of the pictures are of different kinds."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        dense = _LeftHalf().eval()
        inputs = torch.randn(64, 1, 8, 8)
        inputs[..., 4:] = 4 * inputs[..., 4:] + 2
    pruned = solved_behind(dense, "first", "second", [0, 2, 3, 6], batches_of(inputs, 16))
    with torch.inference_mode():
        rows = torch.sigmoid(pruned.first(inputs)).movedim(1, -1).double().numpy()
        wanted = dense.second(torch.sigmoid(dense.first(inputs))).movedim(1, -1).double().numpy()
        found = pruned.second(torch.sigmoid(pruned.first(inputs))).movedim(1, -1).double().numpy()
    rows = np.concatenate([rows, np.ones_like(rows[..., :1])], -1)
    rows, left = rows.reshape(64, 8, 8, 5), (slice(None), slice(None), slice(0, 4))

    def fitted(places: Any) -> Any:
        return rows @ np.linalg.lstsq(rows[places].reshape(-1, 5), wanted[places].reshape(-1, 6), rcond=None)[0]

    ours, plain, best = (np.square(side - wanted)[left].mean() for side in (found, fitted(...), fitted(left)))
    assert best < ours < best + 0.2 * (plain - best)
