"""What a forward takes for granted: attributes that hold widths, and which groups a failure is put down to."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pruneport.compress.hooks import running
from pruneport.compress.options import PruneOptions
from pruneport.compress.prune import prune
from pruneport.compress.surgery.apply import apply_plan
from pruneport.errors import BundleError
from pruneport.models.record import Source

SOURCE = Source(spec="tests:forwards", model_args={}, seed=0, input_shape=(3, 8, 8))


class Split(nn.Module):
    """Three ways to hold a width: a number, a tuple of widths, and a number that only looks like one."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.parts, self.num_heads = 12, (8, 4), 12
        self.a = nn.Conv2d(3, 12, 1)
        self.b = nn.Conv2d(8, 6, 1)
        self.c = nn.Conv2d(4, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).reshape(len(x), self.width, -1, 8)
        first, second = torch.split(y, self.parts, dim=1)
        out: Tensor = self.b(first) + self.c(second)
        return out


class Stiff(nn.Module):
    """A forward that relies on its width in a way that nothing can be put in the place of."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(6, 10, 1), nn.Conv2d(10, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.a(x).as_strided((len(x), 10, 8, 8), (640, 64, 8, 1)))
        return out


def network() -> nn.Sequential:
    torch.manual_seed(0)
    head = nn.Sequential(nn.Conv2d(6, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    return nn.Sequential(Split(), Stiff(), Stiff(), *head).eval()


def test_widths_in_attributes_are_set_recorded_and_checked() -> None:
    dense = network()
    pruned = prune(dense, SOURCE, PruneOptions(ratio=0.5, round_to=1))
    split: Any = pruned.network[0]  # type: ignore[index]
    assert (split.width, split.parts, split.num_heads) == (6, (4, 2), 12)
    assert pruned.plan.attributes == {"0": {"width": 6, "parts": (4, 2)}}
    assert (dense[0].width, dense[0].parts) == (12, (8, 4)), "the dense network is as it was"
    for value in ("6", 6.0, True, (6,)):
        with pytest.raises(BundleError, match=r"sets 0\.width to"):
            apply_plan(copy.deepcopy(dense), pruned.plan.groups, {"0": {"width": value}})  # type: ignore[dict-item]
    with pytest.raises(BundleError, match=r"sets 0\.forward to 6"):
        apply_plan(copy.deepcopy(dense), pruned.plan.groups, {"0": {"forward": 6}})


def test_what_is_like_the_module_that_failed_stays_dense_at_once() -> None:
    told: list[str] = []
    pruned = prune(network(), SOURCE, PruneOptions(ratio=0.5, round_to=1), told.append)
    reasons = {group.name: group.reason for group in pruned.plan.groups if group.kept is None}
    for name in ("1.a", "2.a"):
        assert reasons[name].startswith(
            f"the forward of {name[0]} relies on this width: setStorage: sizes [2, 10, 8, 8]"
        )
    assert told.count("removing filters") == 2


def test_running_tells_where_a_forward_failed() -> None:
    failing = network()
    failing[2].b = nn.Conv2d(3, 6, 1)  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="channels"), running(failing) as stack:
        failing(torch.randn(1, 3, 8, 8))
    assert stack == ["", "2", "2.b"]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in failing.modules())


class OwnScale(nn.Module):
    """Attention that is scaled by the root of its own width, behind norms of queries."""

    def __init__(self) -> None:
        super().__init__()
        self.head_dim = 8
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(len(x), -1, 3, 2, self.head_dim).permute(2, 0, 3, 1, 4)
        out: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out


def test_logits_keep_their_scale() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(3, 16, 2, stride=2), nn.Flatten(2), Turned(), OwnScale(), Mean(), nn.Linear(16, 4))
    pruned = prune(dense.eval(), SOURCE, PruneOptions(ratio=0.5, round_to=1))
    group = next(group for group in pruned.plan.groups if group.name == "3.qkv")
    assert group.kept is not None and len(group.kept) == 4  # noqa: PT018
    rows = [kept + 8 * head for head in range(2) for kept in group.kept]
    columns = next(group.kept for group in pruned.plan.groups if group.name == "0")
    before, after = dense[3].qkv.weight, pruned.network[3].qkv.weight  # type: ignore[union-attr,index]
    torch.testing.assert_close(after[:8], before[rows][:, columns])
    torch.testing.assert_close(after[8:16], before[[16 + row for row in rows]][:, columns] * 0.5**0.5)


class Turned(nn.Module):
    """(B, C, places) to (B, places, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class Mean(nn.Module):
    """Over places."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


class Scaled(nn.Module):
    """Numbers computed from widths: by the root of an attribute, by a size asked for, and where nobody sees it."""

    def __init__(self, scale: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.width, self.scale = 12, scale
        self.a, self.b = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).reshape(len(x), self.width, -1, 8)
        out: Tensor = self.b(y * self.scale(self, y))
        return out


SCALES: dict[str, tuple[Callable[[Any, Tensor], Any], dict[str, int]]] = {
    "a root of an attribute": (lambda n, y: n.width**-0.5, {}),
    "an attribute times values": (lambda n, y: torch.ones(1) / n.width, {}),
    "a root of a size": (lambda n, y: y.size(1) ** 0.5, {"width": 6}),
    "one over a size": (lambda n, y: 1 / y.shape[1], {"width": 6}),
    "a count of entries": (lambda n, y: 1000 / y[0].numel(), {"width": 6}),
    "a product that is not seen": (lambda n, y: 0.5 * n.width, {}),
    "a size that decides": (lambda n, y: 2.0 if y.shape[1] == 12 else 3.0, {"width": 6}),
}


@pytest.mark.parametrize("name", SCALES)
def test_numbers_stay_those_of_the_dense_network(name: str) -> None:
    scale, attributes = SCALES[name]
    torch.manual_seed(0)
    head = nn.Sequential(nn.ReLU(), nn.Conv2d(6, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    dense = nn.Sequential(Scaled(scale), *head).eval()
    pruned = prune(dense, SOURCE, PruneOptions(ratio=0.5, round_to=1))
    assert pruned.network[0].a.out_channels == 6  # type: ignore[index,union-attr]
    assert pruned.plan.attributes.get("0", {}) == attributes
    inputs = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    kept = next(group.kept for group in pruned.plan.groups if group.name == "0.a")
    gone = sorted(set(range(12)) - set(kept or ()))
    zeroed = copy.deepcopy(dense).double()
    with torch.no_grad():
        zeroed[0].a.weight[gone], zeroed[0].a.bias[gone] = 0, 0
        middle, last = (zeroed[0].b, "0.b"), (zeroed[2], "2")
        for layer, group in (middle, last):
            left = next(plan.kept for plan in pruned.plan.groups if plan.name == group)
            for unit in set(range(layer.out_channels)) - set(left or range(layer.out_channels)):
                layer.weight[unit], layer.bias[unit] = 0, 0
        expected, actual = zeroed(inputs), copy.deepcopy(pruned.network).double()(inputs)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)
