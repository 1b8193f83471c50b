"""Streams that are added to: blocks, branches that fold into one, scales, highways, exchanges."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from .registry import ConvBN, add, conv, parameter, pooled

STREAM = {"scope": "channels"}


class Trunk(nn.Module):
    """The given blocks between a stem of 24 channels and a convolution before the head; their stream is 24 wide."""

    def __init__(self, *blocks: nn.Module, out: int = 24) -> None:
        super().__init__()
        self.stem, self.blocks = ConvBN(3, 24, 3, 2), nn.ModuleList(blocks)
        self.last, self.head = ConvBN(out, 20), nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(pooled(self.last(x)))


class PreActivation(nn.Module):
    """Norm and activation first; the shortcut leaves after the first of them."""

    def __init__(self, inputs: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, planes, stride=stride, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(planes), conv(planes, planes, bias=False)
        if stride != 1 or inputs != planes:
            self.shortcut = nn.Sequential(nn.AvgPool2d(stride), nn.Conv2d(inputs, planes, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(x))
        shortcut = self.shortcut(y) if hasattr(self, "shortcut") else x
        return self.conv2(F.relu(self.bn2(self.conv1(y)))).add_(shortcut)


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 in channel groups, 1 x 1, with a downsampled identity."""

    expansion = 2

    def __init__(self, inputs: int, planes: int, groups: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, planes, 1, bias=False), nn.BatchNorm2d(planes)
        self.conv2 = conv(planes, planes, stride=stride, groups=groups, bias=False)
        self.bn2, self.relu = nn.BatchNorm2d(planes), nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(planes, planes * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)
        self.downsample: nn.Module | None = None
        if stride > 1 or inputs != planes * self.expansion:
            self.downsample = ConvBN(inputs, planes * self.expansion, 1, stride, act=None)

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class Three(nn.Module):
    """RepVGG before it is folded: 3 x 3, 1 x 1 and a norm of the identity, added."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.dense, self.point = ConvBN(width, out, act=None), ConvBN(width, out, 1, act=None)
        self.identity = nn.BatchNorm2d(width) if width == out else None

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.dense(x) + self.point(x) + (0 if self.identity is None else self.identity(x)))


class Scaled(nn.Module):
    """A branch with a layer scale, a stochastic depth and a learned share of the skip."""

    def __init__(self, width: int = 24, kind: str = "layer") -> None:
        super().__init__()
        self.kind, self.inner, self.outer = kind, ConvBN(width, 40), ConvBN(40, width, act=None)
        self.gamma = nn.Parameter(1e-6 * torch.ones(width)) if kind == "layer" else parameter(1)
        self.drop = StochasticDepth(0.5, "row")
        self.gate = conv(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.outer(self.inner(x))
        if self.kind == "layer":
            return x + self.drop(self.gamma[:, None, None] * y)
        if self.kind == "zero":
            return x + self.gamma * y
        share = torch.sigmoid(self.gate(x))
        return share * y + (1 - share) * x


class DualPath(nn.Module):
    """A part of each block's output is added, the rest is appended; the stream is a pair."""

    def __init__(self, first: int = 24, grow: int = 8) -> None:
        super().__init__()
        self.first, self.grow = first, grow
        self.one = nn.Sequential(ConvBN(first, 20), conv(20, first + grow, 1))
        self.two = nn.Sequential(ConvBN(first + grow, 20), conv(20, first + grow, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        added, dense = x + y[:, : self.first, :, :], y[:, self.first :, :, :]
        y = self.two(torch.cat([added, dense], dim=1))
        return torch.cat([added + y[:, : self.first], dense, y[:, self.first :]], dim=1)


class Mean(nn.Module):
    """Branches of equal width, stacked and averaged, or the maximum of them, or all pairs of minima and maxima."""

    def __init__(self, kind: str, width: int = 24) -> None:
        super().__init__()
        self.kind = kind
        self.branches = nn.ModuleList(nn.Sequential(ConvBN(width, 20), ConvBN(20, width)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        parts = [branch(x) for branch in self.branches]
        if self.kind == "mean":
            return torch.stack(parts).mean(0)
        if self.kind == "max":
            return torch.stack(parts, dim=-1).max(dim=-1).values
        return torch.minimum(torch.maximum(parts[0], parts[1]), parts[2]) + torch.max(x, parts[0])


class Exchange(nn.Module):
    """HRNet: two resolutions that feed each other through strided and through upsampled convolutions."""

    def __init__(self, widths: Sequence[int] = (24, 32)) -> None:
        super().__init__()
        self.transition = ConvBN(widths[0], widths[1], 3, 2)
        self.branches = nn.ModuleList(nn.Sequential(ConvBN(w, w), ConvBN(w, w)) for w in widths)
        self.down, self.up = ConvBN(widths[0], widths[1], 3, 2, act=None), ConvBN(widths[1], widths[0], 1, act=None)

    def forward(self, x: Tensor) -> Tensor:
        high, low = self.branches[0](x), self.branches[1](self.transition(x))
        joined = F.relu(high + F.interpolate(self.up(low), scale_factor=2, mode="nearest"))
        low = F.relu(low + self.down(high))
        return torch.cat([joined, F.interpolate(low, size=joined.shape[2:], mode="bilinear", align_corners=True)], 1)


class Hourglass(nn.Module):
    """A recursion over depth, each level adding what came up from below."""

    def __init__(self, depth: int, width: int = 24) -> None:
        super().__init__()
        self.skip = nn.Sequential(ConvBN(width, 20), ConvBN(20, width, act=None))
        self.down = nn.Sequential(nn.MaxPool2d(2), ConvBN(width, width))
        self.inner = Hourglass(depth - 1, width) if depth > 1 else ConvBN(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + F.interpolate(self.inner(self.down(x)), scale_factor=2)


def copies(count: int) -> list[nn.Module]:
    block = Scaled(kind="zero")
    return [copy.deepcopy(block) for _ in range(count)]


def blocks(name: str, *args: Any, prunes: str, **options: Any) -> None:
    out = options.pop("out", 24)
    add(name, lambda: Trunk(*(make() for make in args), out=out), prunes=prunes, keeps="last.0 head", **options)


blocks("pre-activation", lambda: PreActivation(24, 24), lambda: PreActivation(24, 32, 2), out=32,
       prunes="blocks.0.conv1 blocks.1.conv1", onnx=True)  # fmt: skip
blocks("pre-activation and its stream", lambda: PreActivation(24, 24), lambda: PreActivation(24, 32, 2), out=32,
       prunes="stem.0 blocks.0.conv1 blocks.0.conv2 blocks.1.shortcut.1", options=STREAM)  # fmt: skip
blocks("bottlenecks in channel groups", lambda: Bottleneck(24, 32, 2, 2), lambda: Bottleneck(64, 32, 2), out=64,
       prunes="blocks.0.conv1 blocks.0.conv2 blocks.1.conv1")  # fmt: skip
blocks("bottlenecks and their stream", lambda: Bottleneck(24, 32, 2, 2), lambda: Bottleneck(64, 32, 32), out=64,
       prunes="stem.0 blocks.0.conv2 blocks.0.conv3 blocks.1.conv2", options=STREAM)  # fmt: skip
blocks("three branches added", lambda: Three(24, 24), lambda: Three(24, 32), out=32, options=STREAM,
       prunes="stem.0 blocks.0.dense.0 blocks.0.identity blocks.1.point.0")  # fmt: skip
blocks("a layer scale", Scaled, Scaled, prunes="blocks.0.inner.0 blocks.1.inner.0")
blocks("a layer scale and its stream", Scaled, Scaled, prunes="stem.0 blocks.0.gamma blocks.0.outer.0", options=STREAM)
blocks("branches that start at zero", lambda: nn.Sequential(*copies(2)), prunes="blocks.0.0.inner.0 blocks.0.1.inner.0")
blocks("a highway", lambda: Scaled(kind="gate"), options=STREAM, prunes="stem.0 blocks.0.inner.0 blocks.0.gate")
blocks("two paths", DualPath, out=40, prunes="blocks.0.one.0.0 blocks.0.two.0.0")
blocks("two paths and their stream", DualPath, out=40, prunes="stem.0 blocks.0.one.0.0 blocks.0.one.1", options=STREAM)
blocks("the mean of branches", lambda: Mean("mean"), prunes="stem.0 blocks.0.branches.0.0.0", options=STREAM)
blocks("the maximum of branches", lambda: Mean("max"), prunes="stem.0 blocks.0.branches.1.1.0", options=STREAM)
blocks("minima and maxima of branches", lambda: Mean("pairs"), prunes="blocks.0.branches.2.0.0 blocks.0.branches.0.1.0",
       options=STREAM)  # fmt: skip
blocks("an exchange of resolutions", Exchange, out=56, prunes="stem.0 blocks.0.branches.0.0.0 blocks.0.up.0",
       options=STREAM, onnx=True)  # fmt: skip
blocks("an hourglass", lambda: Hourglass(2), prunes="blocks.0.skip.0.0 blocks.0.inner.skip.0.0")
