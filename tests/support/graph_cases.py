"""Small networks whose layers are coupled in different ways, and what must hold once a graph has pruned them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pruneport.compress.graph.dependency.channel_graph import ChannelGraph
from pruneport.compress.graph.groups import Group
from pruneport.compress.graph.module_attributes import rescale_keys
from pruneport.compress.group_records import GroupPlan
from pruneport.compress.surgery.apply import apply_plan
from pruneport.compress.surgery.zeroing_check import check_against_masked
from small_networks import Net, conv, pooled, randomise_norms, same_state

__all__ = ["NETWORKS", "X", "check_removal", "made", "plans_of"]

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def plans_of(graph: ChannelGraph) -> list[GroupPlan]:
    """What the graph has removed, as a plan says it."""
    return [
        GroupPlan(
            name=group.name,
            role=group.role,
            width=group.width,
            asked=0,
            kept=None if len(_kept_of(graph, group)) == group.width else _kept_of(graph, group),
            reason="",
            macs=0,
            params=0,
            members=group.members,
        )
        for group in graph.groups
    ]


def _kept_of(graph: ChannelGraph, group: Group) -> tuple[int, ...]:
    """The units that a group has left, by their place in it."""
    return tuple(place for place, unit in enumerate(group.units) if unit not in graph.shrinking.axes.removed)


def check_removal(dense: nn.Module, graph: ChannelGraph, exact: bool = True, inputs: Tensor = X) -> None:
    """The shrunk network computes what zeroing does, and is what the plan makes of the dense one, bit for bit.

    Where the keys of an attention were scaled in several steps, their rounding differs.
    """
    plans = plans_of(graph)
    lost = {unit for group in graph.groups for unit in group.units} - {
        group.units[place] for group in graph.groups for place in _kept_of(graph, group)
    }
    assert lost
    error = check_against_masked(dense, graph.model, plans, inputs, graph.coupling, lost)
    assert error is not None
    assert error < 1e-5
    again = copy.deepcopy(dense)
    apply_plan(again, plans, graph.shrinking.changes.attributes, graph.shrinking.changes.sizes)
    rescale_keys(again, graph.coupling, lambda unit: unit not in lost)
    assert same_state(again, graph.model) or not exact
    torch.testing.assert_close(again(inputs), graph.model(inputs), **({"rtol": 0, "atol": 0} if exact else {}))


def residual() -> nn.Module:
    return Net(
        lambda net, x: net.fc(pooled(net.norm(y := net.stem(x)) + net.b(F.relu(net.a(y))))),
        stem=conv(3, 8),
        norm=nn.BatchNorm2d(8),
        a=conv(8, 10),
        b=conv(10, 8),
        fc=nn.Linear(8, 4),
    )


def concatenated() -> nn.Module:
    return Net(
        lambda net, x: net.fc(pooled(net.after(torch.cat([net.a(x), net.b(x), net.a(x)], 1)))),
        a=conv(3, 6),
        b=conv(3, 10),
        after=conv(22, 8),
        fc=nn.Linear(8, 4),
    )


def shuffled() -> nn.Module:
    return Net(
        lambda net, x: net.fc(pooled(net.depthwise(F.channel_shuffle(net.a(x), 3)))),
        a=conv(3, 12),
        depthwise=conv(12, 12, groups=12),
        fc=nn.Linear(12, 4),
    )


def grouped() -> nn.Module:
    return Net(
        lambda net, x: net.fc(pooled(net.narrow(net.b(net.wide(net.a(x)))))),
        a=conv(3, 64),
        wide=conv(64, 64, groups=2),
        b=conv(64, 64),
        narrow=conv(64, 64, groups=16),
        fc=nn.Linear(64, 4),
    )


class Attention(nn.Module):
    """Fused projections of two attention heads, a learned position, a buffer that is added."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 2, 2)
        self.position = nn.Parameter(torch.randn(1, 16, 16))
        self.register_buffer("shift", torch.randn(16))
        self.norm = nn.LayerNorm(16)
        self.heads, self.scale = 2, 8**-0.5
        self.qkv, self.project, self.fc = nn.Linear(16, 48), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2) + self.position + self.shift
        batch, places, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(batch, places, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, places, -1)
        found: Tensor = self.fc((x + self.project(mixed)).mean(1))
        return found


def torch_attention() -> nn.Module:
    return Net(
        lambda net, x: net.fc(net.layer(net.embed(x).flatten(2).transpose(1, 2)).mean(1)),
        embed=nn.Conv2d(3, 16, 2, 2),
        layer=nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
        fc=nn.Linear(16, 4),
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "residual": residual,
    "concat": concatenated,
    "shuffle": shuffled,
    "grouped": grouped,
    "attention": Attention,
    "torch attention": torch_attention,
}


def made(name: str) -> nn.Module:
    torch.manual_seed(1)
    network = NETWORKS[name]().eval()
    randomise_norms(network)
    return network
