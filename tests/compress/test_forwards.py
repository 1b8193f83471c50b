"""What a forward takes for granted: attributes that hold widths, and which groups a failure is put down to."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pruneport.compress.hooks import running
from pruneport.compress.options import PruneOptions
from pruneport.compress.plan import apply_plan
from pruneport.compress.prune import prune
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
