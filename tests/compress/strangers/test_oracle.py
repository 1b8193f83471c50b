"""The oracle: what is marked absent takes no part, whatever operation meets it, and a wrong channel shows."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .absent import Absent
from .oracle import Removed, expected_outputs
from .registry import STRANGERS

KEPT = [0, 2, 3, 5, 6, 7]
GONE = [1, 4]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def filters(x: Tensor) -> Tensor:
    return F.conv2d(x, torch.ones(1, 1, 3, 3, dtype=x.dtype).expand(x.shape[1], -1, -1, -1), groups=x.shape[1])


OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x.mean(1, keepdim=True),
    "mean of places": lambda x: x.mean((2, 3)),
    "mean of all": lambda x: x.mean(),
    "sum": lambda x: x.sum(1),
    "variance": lambda x: x.var(1),
    "biased variance": lambda x: x.var((1, 2), unbiased=False, keepdim=True),
    "deviation": lambda x: x.std(1, keepdim=True),
    "both": lambda x: torch.stack(torch.var_mean(x, 1)),
    "largest": lambda x: x.amax(1),
    "largest and where": lambda x: x.max(1)[0],
    "smallest": lambda x: x.min(1)[0],
    "length": lambda x: F.normalize(x, dim=1),
    "norm": lambda x: x.norm(p=2, dim=1),
    "product": lambda x: x.prod(1),
    "logarithm of sums": lambda x: x.logsumexp(1),
    "softmax": lambda x: x.softmax(1),
    "log-softmax": lambda x: F.log_softmax(x, 1),
    "cumulative sum": lambda x: x.cumsum(1),
    "layer norm": lambda x: F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2]).permute(0, 3, 1, 2),
    "root norm": lambda x: F.rms_norm(x.permute(0, 2, 3, 1), x.shape[1:2]).permute(0, 3, 1, 2),
    "group norm": lambda x: F.group_norm(x, 1),
    "instance norm": F.instance_norm,
    "products": lambda x: torch.einsum("bchw,bdhw->bcd", x, x),
    "distances": lambda x: torch.cdist(x.flatten(2).mT, x.flatten(2).mT.roll(1, 1)),
    "attention": lambda x: F.scaled_dot_product_attention(*[x.flatten(2).mT] * 3, scale=0.3),
    "filters": filters,
    "pool": lambda x: F.max_pool2d(x, 2),
    "upsampling": lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
    "spectrum": lambda x: torch.fft.rfft2(x).abs(),
    "windows": lambda x: F.fold(F.unfold(x, 3, padding=1), (4, 4), 3, padding=1),
    "gates": lambda x: F.hardswish(x) * F.gelu(x).sigmoid() + F.relu6(x) - F.silu(x),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_is_absent_takes_no_part(name: str) -> None:
    function = OPERATIONS[name]
    x = torch.randn(2, 8, 4, 4, dtype=torch.float64, generator=generator())
    expected = function(x[:, KEPT])
    x[:, GONE] = math.nan
    with Absent():
        actual = function(x)
    for dim in range(actual.ndim):
        if actual.shape[dim] != expected.shape[dim]:
            assert bool(actual.index_select(dim, torch.tensor(GONE)).isnan().all()), "what is absent stays so"
            actual = actual.index_select(dim, torch.tensor(KEPT))
    torch.testing.assert_close(actual, expected)


LAYERS: dict[str, tuple[Callable[[int, int], nn.Module], str]] = {
    "a convolution": (lambda i, o: nn.Conv2d(i, o, 3, padding=1), "in"),
    "its outputs": (lambda i, o: nn.Conv2d(i, o, 3, padding=1), "out"),
    "channel groups": (lambda i, o: nn.Conv2d(i, o, 3, groups=2, padding=1), "in"),
    "outputs of channel groups": (lambda i, o: nn.Conv2d(i, o, 3, groups=2, padding=1), "out"),
    "a transposed convolution": (lambda i, o: nn.ConvTranspose2d(i, o, 2, 2), "in"),
    "outputs of a transposed one": (lambda i, o: nn.ConvTranspose2d(i, o, 2, 2), "out"),
    "transposed channel groups": (lambda i, o: nn.ConvTranspose2d(i, o, 2, 2, groups=2), "in"),
    "outputs of transposed groups": (lambda i, o: nn.ConvTranspose2d(i, o, 2, 2, groups=2), "out"),
}


@pytest.mark.parametrize("name", LAYERS)
def test_marked_channels_are_those_that_are_cut_off(name: str) -> None:
    build, axis = LAYERS[name]
    torch.manual_seed(0)
    layer = build(8, 8).double()
    inputs = torch.randn(2, 8, 4, 4, dtype=torch.float64)
    gone: list[Removed] = [("0", axis, 8, GONE)]
    silent = inputs.clone()
    if axis == "in":
        silent[:, GONE] = 0  # a bias stays
    expected = layer(silent)
    actual = expected_outputs(nn.Sequential(layer), gone, inputs)
    if axis == "out":
        assert bool(actual[:, GONE].isnan().all())
        actual, expected = actual[:, KEPT], expected[:, KEPT]
    torch.testing.assert_close(actual, expected)


def test_a_norm_averages_over_what_is_left() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 3)).double()
    nn.init.normal_(dense[1].weight), nn.init.normal_(dense[1].bias)  # type: ignore[arg-type]
    small = copy.deepcopy(dense)
    small[0].weight.data, small[0].bias.data = dense[0].weight[KEPT], dense[0].bias[KEPT]  # type: ignore[index]
    small[1].weight.data, small[1].bias.data = dense[1].weight[KEPT], dense[1].bias[KEPT]  # type: ignore[index]
    small[1].normalized_shape = (len(KEPT),)
    small[2].weight.data = dense[2].weight[:, KEPT]  # type: ignore[index]
    removed: list[Removed] = [("0", "out", 8, GONE), ("1", "channels", 8, GONE), ("2", "in", 8, GONE)]
    inputs = torch.randn(4, 5, dtype=torch.float64)
    torch.testing.assert_close(expected_outputs(dense, removed, inputs), small(inputs))


def test_the_dense_network_is_left_as_it_was() -> None:
    dense = STRANGERS["a classifier that returns softmax"].build()
    before = copy.deepcopy(dense.state_dict())
    removed: list[Removed] = [("stem.0", "out", 16, [3]), ("stem.1", "channels", 16, [3]), ("body.0", "in", 16, [3])]
    inputs = torch.randn(2, 3, 16, 16, generator=generator())
    right = expected_outputs(dense, removed, inputs)
    assert all(torch.equal(value, before[key]) for key, value in dense.state_dict().items())
    assert not bool(right.isnan().any())
    wrong = expected_outputs(dense, [*removed[:2], ("body.0", "in", 16, [4])], inputs)
    assert float((right - wrong).detach().abs().max()) > 1e-6
