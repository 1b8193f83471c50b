"""Sizes that forwards compute: from configurations, with floats, rounded, compared, multiplied, given by name."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention_heads import both
from .own_weights import between
from .registry import ConvBN, add, conv, pooled


@dataclass
class Config:
    """Widths, as large libraries keep them."""

    dim: int = 32
    heads: int = 4

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads


class Configured(nn.Module):
    """All sizes come from an object that is no module; ``read`` says how."""

    def __init__(self, config: Any, read: Callable[[Any, str], int]) -> None:
        super().__init__()
        self.config, self.read = config, read
        dim = read(config, "dim")
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        heads, width = self.read(self.config, "heads"), self.read(self.config, "head_dim")
        q, k, v = (part(x).view(len(x), -1, heads, width).transpose(1, 2) for part in (self.q, self.k, self.v))
        y = (q @ k.transpose(-1, -2) / math.sqrt(width)).softmax(-1) @ v
        return self.o(y.transpose(1, 2).reshape(len(x), -1, heads * width))


class Insisting(nn.Module):
    """Checks its input's width, and takes the width of a head from numpy."""

    def __init__(self, embed_dim: int = 32, num_heads: int = 4) -> None:
        super().__init__()
        self.embed_dim, self.num_heads = embed_dim, num_heads
        self.in_proj, self.out_proj = nn.Linear(embed_dim, 3 * embed_dim), nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        bsz, length, embed_dim = x.size()
        assert embed_dim == self.embed_dim, f"expected {self.embed_dim}, got {embed_dim}"
        if embed_dim % self.num_heads != 0:
            raise ValueError("the width must be a multiple of the heads")
        scale = float(embed_dim // self.num_heads) ** -0.5
        shape = (bsz, length, 3, self.num_heads, int(np.prod(x.shape[2:])) // self.num_heads)
        q, k, v = self.in_proj(x).reshape(shape).permute(2, 0, 3, 1, 4)
        return self.out_proj(((q * scale) @ k.mT).softmax(-1).matmul(v).transpose(1, 2).reshape(x.shape))


class Shortcut(nn.Module):
    """CIFAR's shortcut without weights: every second place, and zeros for the channels that are not there."""

    def __init__(self, by_shape: bool, inputs: int = 20, planes: int = 32) -> None:
        super().__init__()
        self.by_shape, self.planes = by_shape, planes
        self.stem = ConvBN(3, inputs)
        self.conv1, self.bn1 = conv(inputs, planes, stride=2), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = conv(planes, planes), nn.BatchNorm2d(planes)
        self.last, self.head = ConvBN(planes, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.by_shape:
            short = F.avg_pool2d(x, 2)
            if short.shape[1] != y.shape[1]:
                zeros = torch.zeros(len(x), y.shape[1] - short.shape[1], *short.shape[2:], dtype=x.dtype)
                short = torch.cat([short, zeros], dim=1)
        else:
            side = (self.planes - x.shape[1]) // 2
            short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, side, side), "constant", 0)
        return self.head(pooled(self.last(F.relu(y + short))))


class Coded(nn.Module):
    """An autoencoder through a flat code: ``nn.Flatten``, ``nn.Unflatten`` and a view by a saved shape."""

    def __init__(self, layer: bool) -> None:
        super().__init__()
        self.layer = layer
        self.enc, self.flat = nn.Sequential(ConvBN(3, 20, 3, 2), ConvBN(20, 24, 3, 2)), nn.Flatten()
        self.fc1, self.fc2, self.unflat = nn.Linear(24 * 16, 28), nn.Linear(28, 24 * 16), nn.Unflatten(1, (24, 4, 4))
        self.up, self.last, self.out = nn.ConvTranspose2d(24, 20, 2, 2), ConvBN(20, 16), nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.enc(x)
        shape = y.shape
        code = F.relu(self.fc2(F.relu(self.fc1(self.flat(y)))))
        y = self.unflat(code) if self.layer else code.view(-1, *shape[1:])
        return self.out(self.last(self.up(y)))


def partial(n: Any, y: Tensor) -> Tensor:
    part = int(y.shape[1] * n.share)
    return torch.cat([n.left(y[:, :part]), y[:, part:]], 1)


def rounded(n: Any, y: Tensor) -> Tensor:
    c = y.size(1)
    part = round(c / 4) if n.by_round else max(8, math.ceil(0.1 * c))
    first, rest = y.split([part, c - part], dim=1)
    return torch.cat((n.left(first), rest), 1)


def multiplied(n: Any, y: Tensor) -> Tensor:
    size = functools.reduce(operator.mul, y.shape[1:], 1)
    return y.reshape(-1, size).reshape(y.size(0), size // math.prod(y.shape[2:]), *y.shape[2:])


def numbered(n: Any, y: Tensor) -> Tensor:
    return y.reshape(-1, y.shape[1:].numel()).unflatten(1, tuple(y.shape[1:]))


def expanded(n: Any, y: Tensor) -> Tensor:
    mask = n.left(y).sigmoid()
    return y * (mask.expand(-1, y.shape[1], -1, -1) if n.expand else mask.repeat(1, y.size(1), 1, 1))


def made(n: Any, y: Tensor) -> Tensor:
    out = y.new_zeros(y.shape[0], y.shape[1], y.shape[2] + 2, y.shape[3])
    out[:, :, 1:-1] = y
    total = torch.zeros(y.size(0), y.size(1), 1, 1, dtype=y.dtype)
    for part in y.chunk(2, dim=2):
        total = total + part.mean((2, 3), keepdim=True)
    return F.max_pool2d(out, (3, 1), 1) + total


def repeated(n: Any, y: Tensor) -> Tensor:
    return torch.cat([y] * 2, 1) + y.repeat(1, 2, 1, 1) + y.repeat_interleave(2, dim=1)


def uneven(n: Any, y: Tensor) -> Tensor:
    first, second, third = torch.chunk(y, 3, dim=1)
    return torch.cat([third, n.left(first), second], 1)


def tensor_split(n: Any, y: Tensor) -> Tensor:
    parts = torch.tensor_split(y, 3, dim=1)
    return torch.cat([parts[2], parts[0], parts[1] * 2], 1)


def from_the_end(n: Any, y: Tensor) -> Tensor:
    half = y.shape[1] // 2
    return torch.cat([y[:, -half:] * y[:, :-half], y.narrow(1, half, y.size(1) - half)], 1)


def sums_by_hand(n: Any, y: Tensor) -> Tensor:
    c = y.shape[1]
    mean = y.sum(1, keepdim=True) / c
    spread = ((y - mean) ** 2).sum(1, keepdim=True) / (c - 1)
    return (y - mean) / (spread + 1e-5).sqrt()


def group_norm_by_hand(n: Any, y: Tensor) -> Tensor:
    b, c, h, w = y.shape
    runs = y.view(b, 4, -1)
    runs = (runs - runs.mean(-1, keepdim=True)) / (runs.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    return runs.view(b, c, h, w)


def over_everything(n: Any, y: Tensor) -> Tensor:
    y = (y - y.mean((1, 2, 3), keepdim=True)) / (y.std(dim=[1, 2, 3], keepdim=True) + 1e-5)
    return y * y.flatten(1).softmax(1).view_as(y) * 64


def sines(n: Any, y: Tensor) -> Tensor:
    _, c, h, w = y.shape
    speeds = 100.0 ** (-torch.arange(c // 2, dtype=y.dtype) / (c // 2))
    angles = torch.arange(h * w, dtype=y.dtype)[:, None] * speeds
    return y + torch.cat([angles.sin(), angles.cos()], 1).T.reshape(1, c, h, w)


for kind, config, read in (
    ("an object", Config(), getattr),
    ("a dictionary", {"dim": 32, "heads": 4, "head_dim": 8}, dict.__getitem__),
    ("a namespace", SimpleNamespace(dim=32, heads=4, head_dim=8), getattr),
):
    both(f"attention by {kind}", lambda config=config, read=read: Configured(config, read), "q k v")
both("attention that insists on its width", Insisting, "in_proj")
for by_shape in (True, False):
    name = f"a shortcut of zeros by {'the shapes' if by_shape else 'a number'}"
    add(name, lambda by_shape=by_shape: Shortcut(by_shape), prunes="conv1", keeps="last.0 head")
    add(f"{name} and its stream", lambda by_shape=by_shape: Shortcut(by_shape), prunes="conv1", keeps="last.0 head",
        options={"scope": "channels"})  # fmt: skip
    layer = by_shape
    add(f"a flat code through {'a layer' if layer else 'a shape'}", lambda layer=layer: Coded(layer), onnx=layer,
        prunes="enc.0.0 fc1 up" if layer else "enc.0.0 enc.1.0 fc1 fc2 up", keeps="last.0 out")  # fmt: skip
between("a share of the channels", partial, lambda: {"left": conv(8, 8), "share": 0.25}, onnx=True)
between("a share of the channels that is rounded up", rounded, lambda: {"left": conv(8, 8), "by_round": 0})
between("a share of the channels that is rounded", rounded, lambda: {"left": conv(8, 8), "by_round": 1})
between("a product of sizes", multiplied, prunes="a", onnx=True)
between("a number of a shape", numbered, prunes="a")
between("a mask expanded to all channels", expanded, lambda: {"left": conv(32, 1), "expand": 1}, "a", onnx=True)
between("a mask repeated for all channels", expanded, lambda: {"left": conv(32, 1), "expand": 0}, "a")
between("zeros of a made shape", made, onnx=True)
between("channels repeated", repeated, out=64)
between("uneven parts", uneven, lambda: {"left": conv(11, 11)})
between("parts that differ by one", tensor_split)
between("channels from the end", from_the_end)
between("sums divided by a width", sums_by_hand)
between("a group norm by hand", group_norm_by_hand)
between("a norm over everything", over_everything, prunes="a")
between("sines of places and channels", sines)
