"""What torch-pruning's tracing gets wrong in attention: heads, scales, widths in attributes, endless walks.

Each test fails once a release mends its fault. ``docs/torch_pruning.md`` tells them to users.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn import functional as F

from small_networks import Net, parameter
from torch_pruning_faults import dependency_graph, outcome, removed_from, still_a_fault, without

pytestmark = pytest.mark.slow  # what another release of torch-pruning may change

ATTENTION = "compress/resize/attention.py"
TRACER = "compress/graph/tracing/tracer.py and its op_* handlers"


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
    still_a_fault(found == "raises", "attributes that hold widths change", "compress/graph/module_attributes.py")


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


@dataclass
class Walk:
    """What torch-pruning's walk from a layer did; it is stopped where it does not end."""

    steps: int = 0
    highest: int = 0
    places: set[Any] = field(default_factory=set)


class EndlessError(Exception):
    """The walk was stopped."""


def walk(monkeypatch: pytest.MonkeyPatch, network: nn.Module, units: Sequence[int]) -> Walk:
    """From the layer ``a`` over 4 x 4 pixels, for 3000 steps or up to index 1000."""
    graph, found = dependency_graph(network, torch.randn(2, 3, 4, 4)), Walk()

    def counted(group: Any, dep: Any, idxs: Any) -> None:
        places = frozenset(unit.idx for unit in idxs)
        found.steps += 1
        found.highest = max(found.highest, *places)
        found.places.add((dep.target, dep.handler, places))
        if found.steps > 3000 or found.highest > 1000:
            raise EndlessError
        add(group, dep, idxs)

    add = tp.dependency.Group.add_dep
    monkeypatch.setattr(tp.dependency.Group, "add_dep", counted)
    with suppress(EndlessError):
        graph.get_pruning_group(network.get_submodule("a"), tp.prune_linear_out_channels, list(units))
    return found


def test_a_bias_for_each_head_makes_the_walk_endless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Swin: two heads taken for channels of four double the indices at each turn around the attention."""
    network = Net(biased_heads, a=nn.Linear(3, 4), b=nn.Linear(4, 5), bias=parameter(2, 1, 1))
    found = walk(monkeypatch, network, [1])
    still_a_fault(found.highest > 1000, f"the walk ends (highest index {found.highest} of 4)", TRACER)


def biased_parts(n: Any, x: Tensor) -> Tensor:
    """Self-attention over the third dimension of (B, G, P, C), from one projection, as in MaxViT."""
    y = x.permute(0, 2, 3, 1)
    q, k, v = (part.reshape(*y.shape[:3], 2, 4).permute(0, 1, 3, 2, 4) for part in n.a(y).chunk(3, -1))
    logits = torch.einsum("BGHID,BGHJD->BGHIJ", q, k) + n.bias
    attended = torch.einsum("BGHIJ,BGHJD->BGHID", logits.softmax(-1), v)
    out: Tensor = n.b(attended.permute(0, 1, 3, 2, 4).reshape(*y.shape[:3], 8))
    return out


def test_places_are_walked_again_in_every_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """MaxViT: lists of indices are compared with their order and roots, not the places that they name."""
    network = Net(biased_parts, a=nn.Linear(3, 24), b=nn.Linear(8, 5), bias=parameter(2, 1, 1))
    found = walk(monkeypatch, network, range(24))
    still_a_fault(
        found.steps > 3000 and len(found.places) < 300,
        f"the walk ends ({found.steps} steps to {len(found.places)} places)",
        TRACER,
    )
