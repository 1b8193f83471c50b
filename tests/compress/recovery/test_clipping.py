"""What activations leave open: which layers are followed by one, and fits that look at what it gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.nn import functional as F

from pruneport.compress.hooks import norms_recorded
from pruneport.compress.recovery.clipping import Clip, Scale, clips_recorded, open_targets
from recovery_cases import batches_of, solved_behind, weights_of_rows

INF = float("inf")


class Block(nn.Module):
    """A residual block whose last steps differ by kind."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.other = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Any:
        kind = self.kind
        y = self.conv(x)
        if kind == "read before its norm":
            return F.relu(self.norm(y)) + y
        y = self.norm(y)
        if kind == "two norms":
            return F.relu(self.other(y))
        if kind == "two sums":
            return F.relu(y + x + x)
        if kind == "norm of the sum":
            return F.relu(self.other(y + x))
        if kind == "sum":
            return F.relu(y + x)
        if kind == "sum in place":
            y += x
            return F.relu(y, inplace=True)
        if kind == "in place, and read again":
            return F.relu(y, inplace=True) * y
        if kind == "dropout":
            return F.relu(F.dropout(y, training=self.training))
        if kind == "sum also read":
            y = y + x
            return F.relu(y) + y
        if kind == "gelu":
            return F.gelu(y)
        if kind == "twice":
            return F.relu(self.norm(self.conv(F.relu(y))))
        return {"relu6": F.relu6, "hardtanh": nn.Hardtanh(-2, 3), "method": Tensor.relu}[kind](y)


@pytest.mark.parametrize(
    ("kind", "clip"),
    [
        ("sum", Clip(0, INF, summed=True)),
        ("sum in place", Clip(0, INF, summed=True)),
        ("in place, and read again", Clip(0, INF)),
        ("dropout", Clip(0, INF)),
        ("relu6", Clip(0, 6)),
        ("hardtanh", Clip(-2, 3)),
        ("method", Clip(0, INF)),
        ("sum also read", None),
        ("read before its norm", None),
        ("two norms", None),
        ("two sums", None),
        ("norm of the sum", None),
        ("gelu", None),
        ("twice", None),
    ],
)
def test_the_activation_behind_a_layer_is_found(kind: str, clip: Clip | None) -> None:
    block = Block(kind).eval()
    hooks = len(block.conv._forward_hooks)
    with torch.no_grad(), norms_recorded(block) as norms:
        block(torch.randn(2, 4, 6, 6))
    with torch.no_grad(), clips_recorded(block, norms) as clips:
        block(torch.randn(2, 4, 6, 6))
    assert clips.get("conv") == clip
    assert len(block.conv._forward_hooks) == hooks


def test_targets_are_moved_only_where_the_activation_does_not_see_it() -> None:
    generator = torch.Generator().manual_seed(0)
    targets, outputs, added = (3 * torch.randn(200, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    scale = Scale(torch.tensor([2.0, -0.5, 0.0]), torch.tensor([0.3, 1.0, 5.0]))
    clip = Clip(0, 6, summed=True)
    moved = open_targets(clip, scale, targets, outputs, added)
    for channel in (0, 1):
        wanted, given, now = (
            (scale.gain * side + scale.offset + added)[:, channel] for side in (targets, outputs, moved)
        )
        torch.testing.assert_close(now.clamp(0, 6), wanted.clamp(0, 6))
        same = (wanted <= 0) & (given <= 0) | (wanted >= 6) & (given >= 6)
        torch.testing.assert_close(now[same], given[same])
        inside = (wanted > 0) & (wanted < 6)
        torch.testing.assert_close(now[inside], wanted[inside])
        assert 0 < int(same.sum()) < 200
    assert torch.equal(moved[:, 2], targets[:, 2]), "a channel without gain"
    assert torch.equal(open_targets(clip, scale, targets, outputs, None), targets), "what is added is not known"


def test_what_is_fitted_is_what_the_activation_gives() -> None:
    """Against a minimiser that knows nothing of least squares: it starts from the plain fit and finds little more."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        dense = nn.Sequential(nn.Conv2d(2, 8, 3), nn.Sigmoid(), nn.Conv2d(8, 1, 1), nn.ReLU()).eval()
        inputs = torch.randn(48, 2, 8, 8)
        dense[2].bias.data -= dense[:3](inputs).mean().item()  # about half of its outputs are below zero
    batches = batches_of(inputs, 16)
    pruned = solved_behind(dense, "0", "2", [0, 1, 2, 5], batches)
    with torch.inference_mode():
        rows = pruned[:2](inputs).movedim(1, -1).flatten(0, -2).double().numpy()
        target = dense[:3](inputs).flatten().double().numpy()
    rows = np.hstack([rows, np.ones((len(rows), 1))])
    counts = weights_of_rows(dense, "2", batches, 36)

    def error(weight: Any, counts: Any = counts) -> float:
        return float((counts * np.square(np.maximum(rows @ weight, 0) - np.maximum(target, 0))).mean())

    reached = np.append(pruned[2].weight.detach().numpy().ravel(), pruned[2].bias.detach().numpy())
    root = np.sqrt(counts)
    plain = np.linalg.lstsq(rows * root[:, None], target * root, rcond=None)[0]
    best = minimize(error, plain, method="Nelder-Mead", options={"maxiter": 4000, "maxfev": 4000})
    assert error(reached) < error(plain)
    assert error(reached) - best.fun < 0.3 * (error(plain) - best.fun)
