"""What torch-pruning's tracing gets wrong in attention: heads, scales, widths in attributes, endless walks.

Each test fails once a release mends its fault. ``docs/torch_pruning.md`` tells them to users.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn import functional as F

from small_networks import Net, parameter
from torch_pruning_faults import dependency_graph, outcome, removed_from, still_a_fault, without

ATTENTION = "compress/resize/attention.py"
TRACER = "compress/graph/tracer.py and its op_* handlers"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def tokens() -> Tensor:
    return torch.randn(2, 7, 3)


class Attention(nn.Module):
    """Two heads over 7 tokens, in a residual stream of 8; queries may be narrower than values."""

    def __init__(self, how: str, width: int = 4, stream: nn.Module | None = None) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(3, 8), nn.Linear(8, 5)
        self.q, self.k, self.v = (nn.Linear(8, 2 * width) for _ in range(3))
        self.out = nn.Linear(2 * width, 8)
        self.how, self.head_dim = how, width
        if how == "torch":
            self.q = self.k = self.v = self.out = nn.Identity()  # type: ignore[assignment]
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        if self.how == "torch":
            x = x + self.attention(x, x, x, need_weights=False)[0]
        else:
            width = self.head_dim if self.how == "attribute" else -1
            q, k, v = (y.unflatten(-1, (2, width)).transpose(-3, -2) for y in (self.q(x), self.k(x), self.v(x)))
            x = x + self.out(self.attend(q, k, v).transpose(-3, -2).flatten(-2))
        out: Tensor = self.head(x.flatten(1, -2).mean(1))
        return out

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.how == "sdpa":
            return F.scaled_dot_product_attention(q, k, v)
        return (q @ k.mT).softmax(-1) @ v


def test_heads_may_lose_different_numbers() -> None:
    found = outcome(Attention("plain"), tokens(), "q", [1])
    still_a_fault(found == "raises", f"one head alone is made narrower (now: {found})", TRACER)


def test_values_are_tied_to_queries_and_keys() -> None:
    """Neither needs the other: the rows that queries and keys lose stand for other positions of the head."""
    found = outcome(Attention("plain"), tokens(), "v", [1, 5])
    still_a_fault(found == "wrong", f"values are removed with queries (now: {found})", TRACER)


def test_the_logits_scale_changes_with_the_width_of_the_head() -> None:
    """scaled_dot_product_attention divides by the root of the width that it sees."""
    network = Attention("sdpa").eval()
    wanted = without(without(without(network, "q", [1, 5]), "k", [1, 5]), "v", [1, 5])
    found = outcome(network, tokens(), "q", [1, 5], wanted)
    still_a_fault(found == "wrong", f"the scale of logits is kept (now: {found})", ATTENTION)
    for name in ("q", "k"):  # and that is all that is wrong
        for tensor in (wanted.get_submodule(name).weight, wanted.get_submodule(name).bias):
            tensor.data *= (4 / 3) ** 0.25
    assert outcome(network, tokens(), "q", [1, 5], wanted) == "right"


def test_widths_in_attributes_are_left() -> None:
    """timm's ViT, MobileViT: reshapes by self.head_dim."""
    found = outcome(Attention("attribute"), tokens(), "q", [1, 5])
    still_a_fault(found == "raises", "attributes that hold widths change", "compress/surgery/module_attributes.py")


@pytest.mark.parametrize("units", [[0, 1], [1, 5]])
def test_torchs_attention_is_tied_to_the_stream(units: list[int]) -> None:
    """Heads lose what the stream loses, and [0, 1] moves a channel from the second head to the first."""
    network = Attention("torch").eval()
    pruned = removed_from(network, tokens(), "embed", units).get_submodule("attention")
    still_a_fault(pruned.head_dim == 3, "the stream loses width and heads do not", ATTENTION)
    wanted = without(without(network, "embed", units), "attention.out_proj", units)
    attention = wanted.get_submodule("attention")
    for tensor in (attention.in_proj_weight.data, attention.in_proj_bias.data):
        tensor[[unit + 8 * part for unit in units for part in range(3)]] = 0
        tensor[:8] *= (4 / 3) ** 0.5  # the scale of logits has changed, too
    found = outcome(network, tokens(), "embed", units, wanted)
    still_a_fault(found == ("wrong" if units == [0, 1] else "right"), "heads stay apart", ATTENTION)


def biased_heads(n: Any, x: Tensor) -> Tensor:
    """Self-attention of all pixels (B, H, W, C) with two heads and a bias for each, as in Swin and MaxViT."""
    y = x.permute(0, 2, 3, 1)
    heads = n.a(y).reshape(len(y), 16, 2, 2).transpose(1, 2)
    attended = (heads @ heads.mT + n.bias).softmax(-1) @ heads
    out: Tensor = n.b(attended.transpose(1, 2).reshape(len(y), 4, 4, 4))
    return out


def test_a_bias_for_each_head_makes_the_walk_endless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two heads taken for channels of four double the indices at each turn around the attention."""
    network = Net(biased_heads, a=nn.Linear(3, 4), b=nn.Linear(4, 5), bias=parameter(2, 1, 1))
    graph = dependency_graph(network, torch.randn(2, 3, 4, 4))
    highest = [0]

    class EndlessError(Exception):
        pass

    def counted(group: Any, dep: Any, idxs: Any) -> None:
        highest.append(max(unit.idx for unit in idxs))
        if highest[-1] > 1000:
            raise EndlessError
        add(group, dep, idxs)

    add = tp.dependency.Group.add_dep
    monkeypatch.setattr(tp.dependency.Group, "add_dep", counted)
    with suppress(EndlessError):
        graph.get_pruning_group(network.a, tp.prune_linear_out_channels, [1])
    still_a_fault(max(highest) > 1000, f"the walk ends (highest index {max(highest)} of 4)", TRACER)
