"""Channels that are shuffled, sliced, made of others, gated by each other, or filtered one by one and in groups."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention_maps import Around
from .registry import ConvBN, add, conv


def shuffled(x: Tensor, groups: int) -> Tensor:
    b, c, h, w = x.size()
    return x.view(b, groups, c // groups, h, w).transpose(1, 2).contiguous().view(b, -1, h, w)


class ShuffleOne(nn.Module):
    """Grouped 1 x 1 convolutions with a shuffle between, as the first ShuffleNet."""

    def __init__(self, width: int = 32, groups: int = 2, hand: bool = True) -> None:
        super().__init__()
        self.groups, self.hand = groups, hand
        self.squeeze, self.depth = ConvBN(width, 48, 1, groups=groups), ConvBN(48, 48, groups=48, act=None)
        self.expand, self.shuffle = ConvBN(48, width, 1, groups=groups, act=None), nn.ChannelShuffle(groups)

    def forward(self, x: Tensor) -> Tensor:
        y = self.squeeze(x)
        y = shuffled(y, self.groups) if self.hand else self.shuffle(y)
        return F.relu(x + self.expand(self.depth(y)))


class ShuffleTwo(nn.Module):
    """A half that passes, a half that is convolved, then a shuffle; the parts are slices by a computed width."""

    def __init__(self, width: int = 32, chunk: bool = True) -> None:
        super().__init__()
        self.chunk, half = chunk, width // 2
        self.branch = nn.Sequential(ConvBN(half, 24, 1), ConvBN(24, 24, groups=24, act=None), ConvBN(24, half, 1))

    def forward(self, x: Tensor) -> Tensor:
        c = x.shape[1] // 2
        first, second = x.chunk(2, dim=1) if self.chunk else (x[:, :c, :, :], x[:, c:, :, :])
        return shuffled(torch.cat((first, self.branch(second)), dim=1), 2)


class Ghost(nn.Module):
    """Half of the outputs are cheap filters of the other half, and what is too many is cut off."""

    def __init__(self, width: int = 32, out: int = 30, ratio: int = 2) -> None:
        super().__init__()
        self.out, inner = out, -(-out // ratio) + 1
        self.primary, self.cheap = ConvBN(width, inner, 1), ConvBN(inner, inner * (ratio - 1), 3, groups=inner)
        self.merge = conv(out, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.primary(x)
        return self.merge(torch.cat([first, self.cheap(first)], dim=1)[:, : self.out, :, :])


class Scales(nn.Module):
    """Res2Net: parts of equal width, each convolved together with the one before."""

    def __init__(self, width: int = 32, scale: int = 4) -> None:
        super().__init__()
        self.width, self.scale = 12, scale
        self.conv1 = ConvBN(width, self.width * scale, 1)
        self.convs = nn.ModuleList(ConvBN(self.width, self.width) for _ in range(scale - 1))
        self.conv3 = ConvBN(self.width * scale, width, 1, act=None)

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(self.conv1(x), self.width, 1)
        y = [parts[0]]
        for i, layer in enumerate(self.convs):
            y.append(layer(parts[i + 1] if i == 0 else y[-1] + parts[i + 1]))
        return self.conv3(torch.cat(y, 1)) + x


class Mixed(nn.Module):
    """Depthwise filters of several sizes, each for a part of uneven width."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.splits = [24, 16, 8]
        self.point = ConvBN(32, width, 1)
        self.depths = nn.ModuleList(conv(c, c, k, groups=c) for c, k in zip(self.splits, (3, 5, 7), strict=True))
        self.out = ConvBN(width, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(self.point(x), self.splits, 1)
        return self.out(torch.cat([depth(part) for depth, part in zip(self.depths, parts, strict=True)], dim=1))


class Gated(nn.Module):
    """Halves that multiply each other, by chunk, by ``F.glu`` or by the layer."""

    def __init__(self, kind: str, width: int = 32, inner: int = 48) -> None:
        super().__init__()
        self.kind, self.glu = kind, nn.GLU(dim=1)
        self.inner, self.depth = ConvBN(width, inner, 1, act=None), conv(inner, inner, groups=inner)
        self.out = conv(inner // 2, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.depth(self.inner(x))
        if self.kind == "chunk":
            first, second = y.chunk(2, dim=1)
            return x + self.out(first * second)
        if self.kind == "gelu":
            first, second = torch.split(y, y.shape[1] // 2, dim=1)
            return x + self.out(F.gelu(first) * second)
        return x + self.out(self.glu(y) if self.kind == "layer" else F.glu(y, dim=1))


class Maxout(nn.Module):
    """The larger of pairs of channels, as a view or as halves; both signs of each; pairs of minima and maxima."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.inner = conv(32, 48)
        self.out = conv(96 if kind == "signs" else 48 if kind == "pairs" else 24, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        b, c, h, w = y.shape
        if self.kind == "view":
            y = y.view(b, c // 2, 2, h, w).max(dim=2)[0]
        elif self.kind == "halves":
            y = torch.max(*y.split(c // 2, 1))
        elif self.kind == "pairs":
            first, second = y[:, ::2], y[:, 1::2]
            y = torch.stack([torch.minimum(first, second), torch.maximum(first, second)], 2).flatten(1, 2)
        else:
            y = F.relu(torch.cat([y, -y], 1))
        return self.out(y)


class Octave(nn.Module):
    """Channels of two resolutions, by a share of the width."""

    def __init__(self, alpha: float = 0.25) -> None:
        super().__init__()
        low = int(48 * alpha)
        self.to_high, self.to_low = ConvBN(32, 48 - low), ConvBN(32, low)
        self.hh, self.hl = conv(48 - low, 32 - 8), conv(48 - low, 8)
        self.lh, self.ll = conv(low, 32 - 8), conv(low, 8)

    def forward(self, x: Tensor) -> Tensor:
        high, low = self.to_high(x), self.to_low(F.avg_pool2d(x, 2))
        up = self.hh(high) + F.interpolate(self.lh(low), scale_factor=2)
        down = self.ll(low) + self.hl(F.avg_pool2d(high, 2))
        return torch.cat([up, F.interpolate(down, scale_factor=2)], 1)


class Ones(nn.Module):
    """A chain of depthwise filters: with a multiplier, without a bias, transposed as CenterNet's upsampling."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(32, 32, 4, 2, 1, groups=32, bias=False)
        self.many, self.point = conv(32, 64, groups=32), conv(64 if kind == "multiplier" else 32, 32, 1)
        self.grouped = nn.ConvTranspose2d(32, 48, 2, 2, groups=2)
        self.last, self.kind = conv(48, 32, groups=1), kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "multiplier":
            return self.point(F.relu6(self.many(x)))
        if self.kind == "transposed":
            return self.point(self.up(x))
        return self.last(F.relu(self.grouped(x)))


class Groups(nn.Module):
    """Convolutions in channel groups, one behind the other, of equal or of different counts."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(32, 48, groups=first), conv(48, 32, groups=second), conv(32, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.b(F.relu(self.a(x)))))


class Shift(nn.Module):
    """Parts of the channels are moved by a place in each direction."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = ConvBN(32, 40, 1), ConvBN(40, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.inner(x).chunk(5, dim=1)
        moves = ((1, 2), (-1, 2), (1, 3), (-1, 3))
        return self.out(
            torch.cat([*(torch.roll(p, s, d) for p, (s, d) in zip(parts[:4], moves, strict=True)), parts[4]], 1)
        )


B, STEM, EDGE = "block.", "stem.0", "stem.0 before.0"
STREAM = "channels"
BLOCKS: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "a shuffle by hand": (ShuffleOne, STEM, "filters"),
    "a shuffle by a layer": (lambda: ShuffleOne(hand=False), f"{EDGE} {B}expand.0", STREAM),
    "a shuffle by hand and its stream": (ShuffleOne, f"{EDGE} {B}expand.0", STREAM),
    "a half that passes": (ShuffleTwo, f"{EDGE} {B}branch.0.0 {B}branch.1.0 {B}branch.2.0", "filters"),
    "a half that passes by slices": (lambda: ShuffleTwo(chunk=False), f"{EDGE} {B}branch.0.0 {B}branch.2.0", "filters"),
    "cheap filters": (Ghost, f"{EDGE}", "filters"),
    "cheap filters without a rest": (lambda: Ghost(out=32, ratio=2), EDGE, "filters"),
    "parts of several scales": (Scales, STEM, "filters"),
    "parts of several scales and their stream": (Scales, f"{EDGE} {B}conv1.0 {B}convs.1.0 {B}conv3.0", STREAM),
    "filters of several sizes": (Mixed, f"{EDGE} {B}point.0 {B}depths.0 {B}depths.2 {B}out.0", "filters"),
    "halves multiplied": (lambda: Gated("chunk"), f"{STEM} {B}inner.0 {B}depth", "filters"),
    "halves multiplied behind gelu": (lambda: Gated("gelu"), f"{STEM} {B}inner.0 {B}depth", "filters"),
    "a gated linear unit": (lambda: Gated("function"), f"{EDGE} {B}out", STREAM),
    "a layer of gated linear units": (lambda: Gated("layer"), STEM, "filters"),
    "the larger of pairs": (lambda: Maxout("view"), f"{EDGE} {B}inner {B}out", "filters"),
    "the larger of halves": (lambda: Maxout("halves"), f"{EDGE} {B}inner {B}out", "filters"),
    "both signs": (lambda: Maxout("signs"), f"{EDGE} {B}inner {B}out", "filters"),
    "minima and maxima of pairs": (lambda: Maxout("pairs"), f"{EDGE} {B}inner {B}out", "filters"),
    "two resolutions": (Octave, f"{EDGE} {B}to_high.0 {B}to_low.0 {B}hh {B}ll", STREAM),
    "a depthwise multiplier": (lambda: Ones("multiplier"), f"{EDGE} {B}many {B}point", "filters"),
    "depthwise upsampling": (lambda: Ones("transposed"), f"{EDGE} {B}up {B}point", "filters"),
    "grouped upsampling": (lambda: Ones("grouped"), f"{STEM} {B}last", "filters"),
    "groups behind groups": (lambda: Groups(4, 2), f"{STEM} {B}b {B}c", "filters"),
    "narrow groups behind wide ones": (lambda: Groups(2, 8), f"{STEM} {B}c", "filters"),
    "parts that are moved": (Shift, f"{EDGE} {B}inner.0 {B}out.0", "filters"),
}
EXPORTED = (
    "a shuffle by hand and its stream",
    "depthwise upsampling",
    "parts of several scales",
)
for name, (block, prunes, scope) in BLOCKS.items():
    add(name, lambda block=block: Around(block()), prunes=prunes, keeps="after.0 head", options={"scope": scope},
        onnx=name in EXPORTED)  # fmt: skip
