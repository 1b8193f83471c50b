"""Channels side by side: dense blocks, inception, YOLO's blocks, U-Nets, pyramids of features."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention_maps import Around
from .registry import ConvBN, add, conv, parameter


class Dense(nn.Module):
    """Each layer reads all before it, as a list that grows; then a transition."""

    def __init__(self, width: int = 32, growth: int = 12) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for i in range(3):
            inputs = width + i * growth
            norm = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, 24, 1, bias=False))
            self.layers.append(nn.Sequential(*norm, nn.BatchNorm2d(24), nn.ReLU(), conv(24, growth, bias=False)))
        self.transition = ConvBN(width + 3 * growth, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return self.transition(torch.cat(features, 1))


class Inception(nn.Module):
    """Four branches of different kernels and widths."""

    def __init__(self) -> None:
        super().__init__()
        self.b1 = ConvBN(32, 12, 1)
        self.b2 = nn.Sequential(ConvBN(32, 16, 1), ConvBN(16, 20))
        wide, high = nn.Conv2d(12, 10, (1, 5), padding=(0, 2)), nn.Conv2d(10, 12, (3, 1), padding=(1, 0))
        self.b3 = nn.Sequential(ConvBN(32, 12, 1), wide, high)
        self.b4 = nn.Sequential(nn.MaxPool2d(3, 1, 1), ConvBN(32, 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.b1(x), self.b2(x), self.b3(x), self.b4(x)], dim=1)


class Bottle(nn.Module):
    """Two convolutions, added to where the widths are equal."""

    def __init__(self, c1: int, c2: int, shortcut: bool = True, e: float = 1.0) -> None:
        super().__init__()
        hidden = int(c2 * e)
        self.cv1, self.cv2, self.add = (
            ConvBN(c1, hidden, act=nn.SiLU),
            ConvBN(hidden, c2, act=nn.SiLU),
            shortcut and c1 == c2,
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.cv2(self.cv1(x)) if self.add else self.cv2(self.cv1(x))


class C2f(nn.Module):
    """Halves by chunk or by split; the last is followed by bottlenecks, all are joined."""

    def __init__(self, split: bool, shortcut: bool, c1: int = 32, c2: int = 32, n: int = 2) -> None:
        super().__init__()
        self.c, self.split = c2 // 2, split
        self.cv1, self.cv2 = ConvBN(c1, 2 * self.c, 1, act=nn.SiLU), ConvBN((2 + n) * self.c, c2, 1, act=nn.SiLU)
        self.m = nn.ModuleList(Bottle(self.c, self.c, shortcut, 1.5) for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).split((self.c, self.c), 1) if self.split else self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class C3(nn.Module):
    """Two ways of half the width, one of them through bottlenecks."""

    def __init__(self, c1: int = 32, c2: int = 32, n: int = 2) -> None:
        super().__init__()
        c_ = c2 // 2
        self.cv1, self.cv2, self.cv3 = ConvBN(c1, c_, 1), ConvBN(c1, c_, 1), ConvBN(2 * c_, c2, 1)
        self.m = nn.Sequential(*(Bottle(c_, c_) for _ in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


class Pools(nn.Module):
    """SPPF: one pool, three times."""

    def __init__(self, c1: int = 32, c2: int = 32) -> None:
        super().__init__()
        self.cv1, self.cv2, self.m = ConvBN(c1, c1 // 2, 1), ConvBN(c1 * 2, c2, 1), nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = [self.cv1(x)]
        y.extend(self.m(y[-1]) for _ in range(3))
        return self.cv2(torch.cat(y, 1))


class Elan(nn.Module):
    """Some of a chain's outputs, joined."""

    def __init__(self) -> None:
        super().__init__()
        self.cv1, self.cv2 = ConvBN(32, 16, 1), ConvBN(32, 16, 1)
        self.chain = nn.ModuleList(ConvBN(16, 16) for _ in range(4))
        self.out = ConvBN(64, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        outs = [self.cv1(x), self.cv2(x)]
        y = outs[-1]
        for i, layer in enumerate(self.chain):
            y = layer(y)
            if i % 2:
                outs.append(y)
        return self.out(torch.cat(outs[::-1], dim=1))


class Down(nn.Module):
    """ADown: after a pool, one half is convolved with a stride, the other pooled and convolved."""

    def __init__(self, c1: int = 32, c2: int = 32) -> None:
        super().__init__()
        self.cv1, self.cv2 = ConvBN(c1 // 2, c2 // 2, 3, 2), ConvBN(c1 // 2, c2 // 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = F.avg_pool2d(x, 2, 1, 0, False, True).chunk(2, 1)
        return torch.cat((self.cv1(x1), self.cv2(F.max_pool2d(x2, 3, 2, 1))), 1)


class UNet(nn.Module):
    """Skips by concatenation; the smaller map is padded to the larger, or the larger cropped."""

    def __init__(self, pad: bool) -> None:
        super().__init__()
        self.pad = pad
        self.inc, self.down1, self.down2 = ConvBN(3, 16), ConvBN(16, 24), ConvBN(24, 40)
        self.up1, self.up2 = nn.ConvTranspose2d(40, 20, 2, 2), nn.ConvTranspose2d(28, 12, 2, 2)
        self.dec1, self.dec2, self.outc = ConvBN(44, 28), ConvBN(28, 20), nn.Conv2d(20, 3, 1)

    def joined(self, up: Tensor, skip: Tensor) -> Tensor:
        if self.pad:
            dy, dx = skip.size(2) - up.size(2), skip.size(3) - up.size(3)
            up = F.pad(up, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
        else:
            skip = skip[:, :, : up.shape[2], : up.shape[3]]
        return torch.cat([skip, up], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.inc(x)
        x2 = self.down1(F.max_pool2d(x1, 2))
        x3 = self.down2(F.max_pool2d(x2, 2))
        return self.outc(self.dec2(self.joined(self.up2(self.dec1(self.joined(self.up1(x3), x2))), x1)))


class Pyramid(nn.Module):
    """Features of three levels: top down with sums, or both ways with sums whose shares are learned."""

    def __init__(self, kind: str, width: int = 24) -> None:
        super().__init__()
        self.kind = kind
        self.trunk = nn.ModuleList([ConvBN(3, 16, 3, 2), ConvBN(16, 24, 3, 2), ConvBN(24, 32, 3, 2)])
        self.lateral = nn.ModuleDict({f"p{i}": conv(w, width, 1) for i, w in enumerate((16, 24, 32))})
        self.smooth = nn.ModuleList(ConvBN(width, 20) for _ in range(3))
        self.down = nn.ModuleList(ConvBN(width, width, 3, 2) for _ in range(2))
        self.shares = parameter(2, 2)
        self.head = nn.Conv2d(20, 4, 1)

    def sum(self, row: int, *parts: Tensor) -> Tensor:
        if self.kind != "weighted":
            return sum(parts[1:], parts[0])
        shares = F.relu(self.shares[row])
        shares = shares / (shares.sum(dim=0) + 1e-4)
        return torch.stack([share * part for share, part in zip(shares, parts, strict=True)]).sum(0)

    def forward(self, x: Tensor) -> list[Tensor]:
        levels = []
        for i, layer in enumerate(self.trunk):
            x = layer(x)
            levels.append(self.lateral[f"p{i}"](x))
        for i in (1, 0):
            size = levels[i].shape[-2:]
            levels[i] = self.sum(0, levels[i], F.interpolate(levels[i + 1], size=size, mode="nearest"))
        if self.kind != "down":
            for i in (1, 2):
                levels[i] = self.sum(1, levels[i], self.down[i - 1](levels[i - 1]))
        return [self.head(smooth(level)) for smooth, level in zip(self.smooth, levels, strict=True)]


class Dilated(nn.Module):
    """ASPP: dilations and a pooled branch that is spread out again."""

    def __init__(self) -> None:
        super().__init__()
        self.rates = nn.ModuleList(nn.Conv2d(32, 12, 3, padding=r, dilation=r) for r in (1, 2, 3))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(32, 10, 1), nn.ReLU())
        self.project = ConvBN(46, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        pool = F.interpolate(self.pool(x), size=x.shape[-2:], mode="bilinear", align_corners=False)
        return self.project(torch.cat([*(F.relu(rate(x)) for rate in self.rates), pool], dim=1))


B, EDGE = "block.", "stem.0 before.0"
BLOCKS: dict[str, tuple[Callable[[], nn.Module], str, int]] = {
    "a dense block": (Dense, f"{EDGE} {B}layers.0.2 {B}layers.2.2 {B}layers.1.5 {B}transition.0", 32),
    "inception": (Inception, f"{EDGE} {B}b1.0 {B}b2.0.0 {B}b2.1.0 {B}b3.1 {B}b3.2 {B}b4.1.0", 52),
    "halves by chunk": (lambda: C2f(False, False), f"{EDGE} {B}cv1.0 {B}m.0.cv1.0 {B}m.0.cv2.0 {B}cv2.0", 32),
    "halves by split": (lambda: C2f(True, False), f"{EDGE} {B}cv1.0 {B}m.0.cv1.0 {B}m.0.cv2.0 {B}cv2.0", 32),
    "halves by chunk with sums": (lambda: C2f(False, True), f"{EDGE} {B}m.0.cv1.0 {B}cv2.0", 32),
    "halves by split with sums": (lambda: C2f(True, True), f"{EDGE} {B}m.0.cv1.0 {B}cv2.0", 32),
    "two ways joined": (C3, f"{EDGE} {B}cv2.0 {B}m.0.cv1.0 {B}cv3.0", 32),
    "one pool three times": (Pools, f"{EDGE} {B}cv1.0 {B}cv2.0", 32),
    "parts of a chain": (Elan, f"{EDGE} {B}cv1.0 {B}cv2.0 {B}chain.1.0 {B}chain.2.0 {B}out.0", 32),
    "halves that are pooled": (Down, f"{EDGE} {B}cv1.0 {B}cv2.0", 32),
    "dilations and a pool": (Dilated, f"{EDGE} {B}rates.0 {B}rates.2 {B}pool.1 {B}project.0", 32),
}
for name, (block, prunes, out) in BLOCKS.items():
    exported = name == "halves by split with sums"
    add(name, lambda block=block, out=out: Around(block(), out=out), prunes=prunes, keeps="after.0 head", onnx=exported)
for pad in (True, False):
    add(f"a U-Net that {'pads' if pad else 'crops'}", lambda pad=pad: UNet(pad), (3, 18, 18) if pad else (3, 16, 16),
        prunes="inc.0 down1.0 down2.0 up1 up2 dec1.0", keeps="dec2.0 outc")  # fmt: skip
for kind in ("down", "both", "weighted"):
    add(f"a pyramid of features {kind}", lambda kind=kind: Pyramid(kind), onnx=kind == "weighted",
        prunes="trunk.0.0 trunk.2.0 lateral.p0 lateral.p2", keeps="smooth.0.0 smooth.2.0 head",
        options={"scope": "channels"})  # fmt: skip
