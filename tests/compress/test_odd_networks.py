"""Odd networks: each is pruned, compared in float64 with the dense one whose removed weights are zero, and rebuilt."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from timm.layers import DropPath
from timm.models.beit import Attention as BeitAttention
from timm.models.cait import ClassAttn, TalkingHeadAttn
from timm.models.xcit import XCA
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.maxvit import RelativePositionalMultiHeadAttention
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2
from torchvision.ops import StochasticDepth

from pruneport.compress.assessment import assess
from pruneport.compress.options import PruneOptions
from pruneport.compress.prune import Pruned, prune
from pruneport.compress.surgery.apply import apply_plan
from pruneport.compress.surgery.plan import parse_plan
from pruneport.models.record import Source
from small_networks import Net, conv, parameter, pooled, zeroed

SHAPE = (3, 8, 8)
SOURCE = Source(spec="tests:odd", model_args={}, seed=0, input_shape=SHAPE)


def folded(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer with a BatchNorm behind it folded into its weights."""
    norm = alive(nn.BatchNorm2d(layer.out_channels))
    nn.init.uniform_(norm.running_mean, -1, 1)  # type: ignore[arg-type]
    nn.init.uniform_(norm.running_var, 0.5, 2)  # type: ignore[arg-type]
    return fuse_conv_bn_eval(layer.eval(), norm.eval())  # type: ignore[type-var]


class Attention(nn.Module):
    """Of one head's width an attribute, as timm's; with fused or separate projections and a bias for each head."""

    def __init__(self, dim: int = 16, heads: int = 2, fused: bool = True, plain: bool = False) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.fused, self.plain = heads, dim // heads, fused, plain
        self.scale = self.head_dim**-0.5
        widths = {"qkv": 3 * dim} if fused else dict.fromkeys("qkv", dim)
        for name, outputs in widths.items():
            setattr(self, name, nn.Linear(dim, outputs))
        self.bias = parameter(heads, 1, 1)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, places, _ = x.shape
        shape = (batch, places, self.num_heads, self.head_dim)
        if self.fused:
            q, k, v = self.qkv(x).reshape(batch, places, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        else:
            q, k, v = (layer(x).reshape(shape).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if self.plain:
            attended = ((q * self.scale) @ k.transpose(-2, -1) + self.bias).softmax(-1) @ v
        else:
            attended = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(attended.transpose(1, 2).reshape(batch, places, -1))
        return out


def tokens(n: Any, x: Tensor) -> Tensor:
    y = n.stem(x).flatten(2).transpose(1, 2)
    y = torch.cat([n.token.expand(len(y), -1, -1), y], 1) + n.places
    y = y + n.attention(y)
    y = y + n.scale * n.down(torch.relu(n.up(y)))
    out: Tensor = n.fc(y[:, 0])
    return out


def transformer(attention: nn.Module) -> Net:
    return Net(
        tokens,
        stem=nn.Conv2d(3, 16, 4, stride=4),
        token=parameter(1, 1, 16),
        places=parameter(1, 5, 16),
        attention=attention,
        scale=parameter(16),
        up=nn.Linear(16, 32),
        down=nn.Linear(32, 16),
        fc=nn.Linear(16, 5),
    )


class TorchAttention(nn.Module):
    """torch's layer, called as torchvision does."""

    def __init__(self, heads: int = 2) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(16, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x, x, x, need_weights=False)[0]
        return out


class TableAttention(nn.Module):
    """Fused attention with biases of its own, whose mask is the queries' product with a table of places, as SAM's."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 8
        self.qkv, self.proj = nn.Linear(16, 48, bias=False), nn.Linear(16, 16)
        self.bias, self.shift, self.table = parameter(48), parameter(1, 5, 48), parameter(5, 8)

    def forward(self, x: Tensor) -> Tensor:
        qkv = F.linear(x, self.qkv.weight, self.bias) + self.shift
        q, k, v = qkv.reshape(len(x), 5, 3, 2, self.width).permute(2, 0, 3, 1, 4)
        out: Tensor = F.scaled_dot_product_attention(q, k, v, attn_mask=q @ self.table.T)
        return self.proj(out.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Windows(nn.Module):
    """Attention in windows of 2 x 2 after a roll, with a table of relative biases; heads are 4 wide."""

    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.heads, self.width = dim // 4, 4
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.table = parameter(9, self.heads)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        rolled = torch.roll(x.permute(0, 2, 3, 1), (-1, -1), (1, 2))
        windows = (
            rolled.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(2, 3).reshape(-1, 4, channels)
        )
        q, k, v = self.qkv(windows).reshape(-1, 4, 3, self.heads, self.width).permute(2, 0, 3, 1, 4)
        index = torch.tensor([[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]])
        bias = self.table[index.flatten()].reshape(4, 4, -1).permute(2, 0, 1)
        mixed = ((q / 2) @ k.transpose(-2, -1) + bias).softmax(-1) @ v
        mixed = self.proj(mixed.transpose(1, 2).reshape(-1, 4, self.heads * self.width))
        whole = mixed.reshape(batch, height // 2, width // 2, 2, 2, channels).transpose(2, 3)
        return torch.roll(whole.reshape(batch, height, width, channels), (1, 1), (1, 2)).permute(0, 3, 1, 2)


def windowed(attention: nn.Module) -> Net:
    """Attention that reads (B, H, W, C) on the way between two convolutions."""
    return Net(
        lambda n, x: n.fc(pooled(n.last(n.attention(n.stem(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)))),
        stem=conv(3, 16, stride=2),
        attention=alive(attention),
        last=conv(16, 8),
        fc=nn.Linear(8, 3),
    )


class Channels(nn.Sequential):
    """Runs what reads (B, C, H, W) on (B, H, W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return out


def alive(module: nn.Module) -> nn.Module:
    """With tables and biases that do something."""
    for tensor in module.parameters():
        nn.init.uniform_(tensor, -0.5, 0.5)
    return module


def shuffled(n: Any, x: Tensor) -> Tensor:
    y = torch.relu(n.a(x))
    batch, channels, height, width = y.shape
    y = y.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)
    first, second = y.chunk(2, dim=1)
    return n.fc(pooled(n.c(torch.cat([first, n.b(second)], 1))))  # type: ignore[no-any-return]


def gated(n: Any, x: Tensor) -> Tensor:
    y = n.a(x)
    gate = torch.sigmoid(n.excite(torch.relu(n.squeeze(y.mean((2, 3), keepdim=True)))))
    return n.fc(pooled(n.last(y * gate)))  # type: ignore[no-any-return]


def blurred(x: Tensor, kernel: Tensor) -> Tensor:
    return F.conv2d(x, kernel.expand(x.shape[1], 1, 3, 3), groups=x.shape[1])


def residual(block: nn.Module, x: Tensor) -> Tensor:
    return x + block(x)  # type: ignore[no-any-return]


def reused(n: Any, x: Tensor) -> Tensor:
    y = torch.relu(n.a(x))
    return n.fc(pooled(n.last(n.twice(torch.relu(n.twice(y))))))  # type: ignore[no-any-return]


CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, int]]] = {
    "a layer used twice": (
        lambda: Net(reused, a=conv(3, 8), twice=conv(8, 8), last=conv(8, 6), fc=nn.Linear(6, 3)),
        {"a": 4, "twice": 4},
    ),
    "uneven branches": (
        lambda: Net(
            lambda n, x: n.fc(pooled(n.last(torch.cat([n.a(x), n.b(x)], 1)))),
            a=conv(3, 4),
            b=conv(3, 12),
            last=conv(16, 6),
            fc=nn.Linear(6, 3),
        ),
        {"a": 2, "b": 6},
    ),
    "a channel shuffle and a split": (
        lambda: Net(shuffled, a=conv(3, 16), b=conv(8, 8), c=conv(16, 6), fc=nn.Linear(6, 3)),
        {"a": 8, "b": 4},
    ),
    "a grouped convolution": (
        lambda: Net(
            lambda n, x: n.fc(pooled(n.last(torch.relu(n.grouped(torch.relu(n.a(x))))))),
            a=conv(3, 32),
            grouped=conv(32, 48, groups=2),
            last=conv(48, 6),
            fc=nn.Linear(6, 3),
        ),
        {"a": 16, "grouped": 24},
    ),
    "narrow channel groups": (
        lambda: Net(
            lambda n, x: n.fc(pooled(n.last(torch.relu(n.grouped(torch.relu(n.a(x))))))),
            a=conv(3, 12),
            grouped=conv(12, 24, groups=6),
            last=conv(24, 6),
            fc=nn.Linear(6, 3),
        ),
        {"a": 6, "grouped": 12},
    ),
    "a depthwise multiplier": (
        lambda: Net(
            lambda n, x: n.fc(pooled(n.last(n.depth(n.a(x))))),
            a=conv(3, 6),
            depth=conv(6, 12, groups=6),
            last=conv(12, 6),
            fc=nn.Linear(6, 3),
        ),
        {"a": 3, "depth": 6},
    ),
    "squeeze and excite": (
        lambda: Net(
            gated, a=conv(3, 8), squeeze=conv(8, 4, 1), excite=conv(4, 8, 1), last=conv(8, 6), fc=nn.Linear(6, 3)
        ),
        {"a": 4, "squeeze": 2},
    ),
    "layer scale": (
        lambda: Net(
            lambda n, x: n.fc(pooled(n.last(n.scale * n.a(x) + n.shift))),
            a=conv(3, 8),
            scale=parameter(8, 1, 1),
            shift=parameter(1, 8, 8, 8),
            last=conv(8, 6),
            fc=nn.Linear(6, 3),
        ),
        {"a": 4},
    ),
    "fused attention": (lambda: transformer(Attention()), {"attention.qkv": 24, "up": 16}),
    "separate attention": (lambda: transformer(Attention(fused=False)), {"attention.q": 8, "attention.v": 8}),
    "attention with a bias": (lambda: transformer(Attention(plain=True)), {"attention.qkv": 24}),
    "torch's attention": (lambda: transformer(TorchAttention()), {"up": 16}),
    "beit's attention": (lambda: transformer(alive(BeitAttention(16, 2, qkv_bias=True))), {"attention.qkv": 24}),
    "cait's class attention": (lambda: transformer(ClassAttn(16, 2)), {"attention.q": 8, "attention.v": 8}),
    "cait's talking heads": (lambda: transformer(TalkingHeadAttn(16, 2)), {"attention.qkv": 24}),
    "maxvit's attention": (
        lambda: windowed(RelativePositionalMultiHeadAttention(16, 8, 4)),
        {"attention.to_qkv": 24, "stem": 8},
    ),
    "swin's windows": (
        lambda: windowed(ShiftedWindowAttention(16, [2, 2], [1, 1], 2)),
        {"attention.qkv": 24, "stem": 8},
    ),
    "swin's cosine windows": (
        lambda: windowed(ShiftedWindowAttentionV2(16, [2, 2], [1, 1], 2)),
        {"attention.qkv": 24, "stem": 8},
    ),
    "queries that meet a table": (lambda: transformer(TableAttention()), {"attention.qkv": 24}),
    "windows with relative bias": (
        lambda: Net(
            lambda n, x: n.fc(pooled(n.last(residual(n.windows, n.stem(x))))),
            stem=conv(3, 8),
            last=conv(8, 8),
            windows=Windows(),
            fc=nn.Linear(8, 3),
        ),
        {"windows.qkv": 12},
    ),
    "transposed and dilated convolutions": (
        lambda: Net(
            lambda n, x: n.fc(pooled(n.last(torch.relu(n.up(torch.relu(n.wide(x))))))),
            wide=nn.Conv2d(3, 8, 3, dilation=2),
            up=nn.ConvTranspose2d(8, 10, 4, stride=2),
            last=conv(10, 6),
            fc=nn.Linear(6, 3),
        ),
        {"wide": 4, "up": 5},
    ),
    "a weight norm": (
        lambda: Net(
            lambda n, x: n.fc(pooled(n.last(torch.relu(n.b(torch.relu(n.a(x))))))),
            a=parametrizations.weight_norm(conv(3, 8)),
            b=parametrizations.weight_norm(conv(8, 8)),
            last=conv(8, 6),
            fc=nn.Linear(6, 3),
        ),
        {"a": 4, "b": 4},
    ),
    "a spectral norm": (
        lambda: Net(
            lambda n, x: n.fc(pooled(n.last(torch.relu(n.a(x))))),
            a=parametrizations.spectral_norm(conv(3, 8)),
            last=parametrizations.spectral_norm(conv(8, 6)),
            fc=nn.Linear(6, 3),
        ),
        {"a": 4},
    ),
    "a batch norm folded away": (
        lambda: Net(
            lambda n, x: n.fc(pooled(n.last(torch.relu(n.depth(torch.relu(n.a(x))))))),
            a=folded(conv(3, 8, bias=False)),
            depth=folded(conv(8, 8, groups=8, bias=False)),
            last=conv(8, 6),
            fc=nn.Linear(6, 3),
        ),
        {"a": 4, "depth": 4},
    ),
    "drop paths": (
        lambda: Net(
            lambda n, x: n.fc(pooled(n.last(n.drop(n.c(torch.relu(n.b(y := n.a(x))))) + n.skip(y)))),
            a=conv(3, 8),
            b=conv(8, 8),
            c=conv(8, 8),
            drop=StochasticDepth(0.9, "row"),
            skip=DropPath(0.9),
            last=conv(8, 6),
            fc=nn.Linear(6, 3),
        ),
        {"a": 8, "b": 4, "c": 8},
    ),
    "a head that is a convolution": (
        lambda: Net(
            lambda n, x: pooled(n.head(torch.relu(n.b(torch.relu(n.a(x)))))),
            a=conv(3, 8),
            b=conv(8, 6),
            head=conv(6, 3),
        ),
        {"a": 4},
    ),
    "two heads": (
        lambda: Net(
            lambda n, x: {"kind": n.kind(pooled(n.b(n.a(x)))), "map": n.map(n.b(n.a(x)))},
            a=conv(3, 8),
            b=conv(8, 6),
            kind=nn.Linear(6, 3),
            map=conv(6, 2),
        ),
        {"a": 4},
    ),
    "blurring": (
        lambda: Net(
            lambda n, x: n.fc(pooled(n.last(blurred(n.a(x), n.kernel)))),
            a=conv(3, 8),
            kernel=parameter(1, 1, 3, 3),
            last=conv(8, 6),
            fc=nn.Linear(6, 3),
        ),
        {"a": 4},
    ),
}  # fmt: skip


def leaves(output: Any) -> list[Tensor]:
    return list(output.values()) if isinstance(output, dict) else [output]


@pytest.fixture(params=CASES, ids=[name.replace(" ", "-") for name in CASES])
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Callable[[], nn.Module], dict[str, int]]:
    build, widths = CASES[request.param]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().eval(), build, widths


def test_removing_is_zeroing(case: tuple[nn.Module, Callable[[], nn.Module], dict[str, int]]) -> None:
    network, build, widths = case
    pruned = prune(network, SOURCE, PruneOptions(ratio=0.5, round_to=1))
    for name, width in widths.items():
        layer: Any = pruned.network.get_submodule(name)
        assert layer.weight.shape[1 if isinstance(layer, nn.ConvTranspose2d) else 0] == width, name
    check(network, pruned, build)


def check(dense: nn.Module, pruned: Pruned, build: Callable[[], nn.Module]) -> None:
    """Removing is zeroing, in float64, and the plan makes the pruned network again."""
    inputs = torch.randn(2, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = leaves(zeroed(copy.deepcopy(dense).double(), pruned.plan)(inputs))
        actual = leaves(copy.deepcopy(pruned.network).double()(inputs))
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6 * float(theirs.abs().max()))
    again = build().eval()
    apply_plan(again, (plan := parse_plan(pruned.plan.to_json())).groups, plan.attributes, plan.sizes)
    again.load_state_dict(pruned.network.state_dict())
    single = inputs.float()
    with torch.inference_mode():
        for ours, theirs in zip(leaves(again(single)), leaves(pruned.network(single)), strict=True):
            assert torch.equal(ours, theirs)


HEADS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "fused": (lambda: transformer(Attention(heads=4)), "attention"),
    "separate": (lambda: transformer(Attention(heads=4, fused=False)), "attention"),
    "with a bias": (lambda: transformer(Attention(heads=4, plain=True)), "attention"),
    "torch's": (lambda: transformer(TorchAttention(4)), "attention.inner"),
    "in windows": (lambda: windowed(Channels(Windows(16))), "attention.0"),
    "beit's": (lambda: transformer(alive(BeitAttention(16, 4, qkv_bias=True, window_size=(2, 2)))), "attention"),
    "cait's class": (lambda: transformer(ClassAttn(16, 4)), "attention"),
    "cait's talking": (lambda: transformer(TalkingHeadAttn(16, 4)), "attention"),
    "xcit's": (lambda: transformer(alive(XCA(16, 4))), "attention"),
    "swin's cosine windows": (lambda: windowed(ShiftedWindowAttentionV2(16, [2, 2], [1, 1], 4)), "attention"),
}


@pytest.mark.parametrize("name", HEADS)
def test_whole_heads_go(name: str) -> None:
    build, place = HEADS[name]
    torch.manual_seed(0)
    network = build().eval()
    options = PruneOptions(ratio=0.5, round_to=1, attention="heads")
    assessed = assess(network, SOURCE, options)
    pruned = prune(network, SOURCE, options, assessment=assessed)
    kept = np.array([group.kept_width for group in pruned.plan.groups], dtype=np.float64)
    assert assessed.cost.macs(kept) == pytest.approx(pruned.plan.pruned.macs, rel=0.01)
    module = pruned.network.get_submodule(place)
    count = next(name for name in ("num_heads", "heads") if hasattr(module, name))
    dense = network.get_submodule(place)
    assert getattr(module, count) == pruned.plan.attributes[place][count] == getattr(dense, count) // 2
    assert getattr(module, "head_dim", 4) == 4
    check(network, pruned, build)


def test_heads_that_are_few_are_not_rounded_away() -> None:
    torch.manual_seed(0)
    network = transformer(Attention(dim=32, heads=4, plain=True)).eval()
    network.stem, network.scale = nn.Conv2d(3, 32, 4, stride=4), parameter(32)  # type: ignore[assignment]
    network.token, network.places, network.fc = parameter(1, 1, 32), parameter(1, 5, 32), nn.Linear(32, 5)  # type: ignore[assignment]
    network.up, network.down = nn.Linear(32, 32), nn.Linear(32, 32)  # type: ignore[assignment]
    plan = prune(network, SOURCE, PruneOptions(ratio=0.25, round_to=8, attention="heads")).plan
    group = next(group for group in plan.groups if group.name == "attention.qkv")
    assert (group.width, group.kept_width) == (4, 3)
    assert {member.module for member in group.members} == {"attention.qkv", "attention.bias", "attention.proj"}


def test_what_is_left_costs_what_was_foreseen(case: tuple[nn.Module, Callable[[], nn.Module], dict[str, int]]) -> None:
    options = PruneOptions(ratio=0.5, round_to=1)
    assessed = assess(case[0], SOURCE, options)
    plan = prune(case[0], SOURCE, options, assessment=assessed).plan
    kept = np.array([group.kept_width for group in plan.groups], dtype=np.float64)
    assert assessed.cost.macs(kept) == pytest.approx(plan.pruned.macs, rel=0.01)


def test_heads_of_torchs_attention_lose_width_and_keep_their_scale() -> None:
    torch.manual_seed(0)
    network = transformer(TorchAttention()).eval()
    pruned = prune(network, SOURCE, PruneOptions(ratio=0.5, round_to=1)).network
    inner: Any = pruned.get_submodule("attention.inner")
    assert inner.in_proj_weight.shape == (24, 16)
    assert inner.out_proj.weight.shape == (16, 8)
    assert inner.scale == 8**-0.5
    shown = inner(torch.randn(1, 5, 16), torch.randn(1, 5, 16), torch.randn(1, 5, 16))[1]
    torch.testing.assert_close(shown.sum(-1), torch.ones(1, 5))


def test_streams_of_a_transformer_shrink_with_their_embeddings() -> None:
    torch.manual_seed(0)
    network = transformer(Attention(plain=True)).eval()
    network.add_module("neck", nn.Linear(16, 6))
    network.function = lambda n, x: n.fc(n.neck(tokens_before_head(n, x)))  # type: ignore[assignment]
    network.add_module("fc", nn.Linear(6, 3))
    pruned = prune(network, SOURCE, PruneOptions(ratio=0.5, round_to=1, scope="channels")).network
    assert pruned.token.shape == (1, 1, 8)  # type: ignore[union-attr]
    assert pruned.places.shape == (1, 5, 8)  # type: ignore[union-attr]
    assert pruned.scale.shape == (8,)  # type: ignore[union-attr]
    assert pruned.neck.weight.shape == (6, 8)  # type: ignore[union-attr]


def tokens_before_head(n: Any, x: Tensor) -> Tensor:
    y = n.stem(x).flatten(2).transpose(1, 2)
    y = torch.cat([n.token.expand(len(y), -1, -1), y], 1) + n.places
    y = y + n.attention(y)
    return (y + n.scale * n.down(torch.relu(n.up(y))))[:, 0]
