"""Attention of convolutional networks: gates of channels and places, context blocks, branches that are weighed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .registry import ConvBN, add, conv, parameter, pooled

__all__ = ["Around"]


class Around(nn.Module):
    """The given block between convolutions that must shrink: 3 > 20 > ``width`` > block > 24 > 5."""

    def __init__(self, block: nn.Module, width: int = 32, out: int = 32, stride: int = 2) -> None:
        super().__init__()
        self.stem, self.before = ConvBN(3, 20, 3, stride), ConvBN(20, width)
        self.block = block
        self.after, self.head = ConvBN(out, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(pooled(self.after(self.block(self.before(self.stem(x))))))


class Squeeze(nn.Module):
    """Squeeze and excite with linear layers and views by the input's sizes."""

    def __init__(self, channel: int = 32, reduction: int = 2) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(channel, channel // reduction, bias=False), nn.ReLU(inplace=True),
            nn.Linear(channel // reduction, channel, bias=False), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        y = F.adaptive_avg_pool2d(x, 1).view(b, c)
        return x * self.fc(y).view(b, c, 1, 1).expand_as(x)


class Convolutional(nn.Module):
    """CBAM: one perceptron for means and maxima of channels, then a mask from both over channels."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Conv2d(width, width // 2, 1), nn.ReLU(), nn.Conv2d(width // 2, width, 1))
        self.mask = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.mlp(F.adaptive_avg_pool2d(x, 1)) + self.mlp(F.adaptive_max_pool2d(x, 1))) * x
        return torch.sigmoid(self.mask(torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], dim=1))) * x


class Neighbours(nn.Module):
    """ECA: a convolution over channels as if they were places; these channels cannot go."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x.mean((2, 3), keepdim=True).squeeze(-1).transpose(-1, -2))
        return x * y.transpose(-1, -2).unsqueeze(-1).sigmoid()


class Context(nn.Module):
    """GC: a softmax over places, and a bottleneck with a layer norm of three dimensions."""

    def __init__(self, planes: int = 32) -> None:
        super().__init__()
        self.mask = nn.Conv2d(planes, 1, 1)
        self.add = nn.Sequential(
            nn.Conv2d(planes, 12, 1), nn.LayerNorm([12, 1, 1]), nn.ReLU(inplace=True), nn.Conv2d(12, planes, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, channel, height, width = x.size()
        weights = self.mask(x).view(batch, 1, height * width).softmax(2).unsqueeze(-1)
        context = torch.matmul(x.view(batch, channel, height * width).unsqueeze(1), weights)
        return x + self.add(context.view(batch, channel, 1, 1))


class NonLocal(nn.Module):
    """Embedded Gaussian with the inner width as an attribute."""

    def __init__(self, in_channels: int = 32, scaled: bool = False) -> None:
        super().__init__()
        self.inter_channels, self.scaled = in_channels // 2, scaled
        self.g, self.theta, self.phi = (nn.Conv2d(in_channels, self.inter_channels, 1) for _ in range(3))
        self.W = nn.Sequential(nn.Conv2d(self.inter_channels, in_channels, 1), nn.BatchNorm2d(in_channels))

    def forward(self, x: Tensor) -> Tensor:
        n = x.size(0)
        g = self.g(x).view(n, self.inter_channels, -1).permute(0, 2, 1)
        theta = self.theta(x).view(n, self.inter_channels, -1).permute(0, 2, 1)
        logits = torch.matmul(theta, self.phi(x).view(n, self.inter_channels, -1))
        if self.scaled:
            logits = logits / theta.shape[-1] ** 0.5
        y = torch.matmul(F.softmax(logits, dim=-1), g).permute(0, 2, 1).contiguous()
        return self.W(y.view(n, self.inter_channels, *x.size()[2:])) + x


class Dual(nn.Module):
    """Places attend to places, channels to channels; both are added."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.query, self.key, self.value = conv(width, 12, 1), conv(width, 12, 1), conv(width, width, 1)
        self.alpha, self.beta = parameter(1), parameter(1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        places = (self.query(x).flatten(2).transpose(1, 2) @ self.key(x).flatten(2)).softmax(-1)
        y = (self.value(x).flatten(2) @ places.transpose(1, 2)).reshape(b, c, h, w)
        energy = x.flatten(2) @ x.flatten(2).transpose(1, 2)
        channels = (energy.max(-1, keepdim=True)[0] - energy).softmax(-1)
        return x + self.alpha * y + self.beta * (channels @ x.flatten(2)).view(b, c, h, w)


class Kernels(nn.Module):
    """SK: branches of several kernels, stacked and weighed by a softmax over branches."""

    def __init__(self, width: int = 32, inner: int = 12) -> None:
        super().__init__()
        self.branches = nn.ModuleList(ConvBN(width, width, kernel, groups=4) for kernel in (3, 5))
        self.squeeze = nn.Sequential(nn.Linear(width, inner), nn.ReLU())
        self.weigh = nn.ModuleList(nn.Linear(inner, width) for _ in self.branches)

    def forward(self, x: Tensor) -> Tensor:
        feats = torch.stack([branch(x) for branch in self.branches], dim=1)
        z = self.squeeze(feats.sum(dim=1).mean((2, 3)))
        weights = torch.stack([fc(z) for fc in self.weigh], dim=1).softmax(dim=1)
        return (feats * weights[..., None, None]).sum(dim=1)


class SplitAttention(nn.Module):
    """ResNeSt: radix parts of a grouped convolution, weighed by a softmax over the parts."""

    def __init__(self, width: int = 32, radix: int = 2) -> None:
        super().__init__()
        self.radix = radix
        self.conv = nn.Sequential(nn.Conv2d(width, width * radix, 3, padding=1, groups=radix), nn.ReLU())
        self.fc1, self.fc2 = nn.Conv2d(width, 12, 1), nn.Conv2d(12, width * radix, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        batch, channels = x.shape[:2]
        x = x.reshape(batch, self.radix, channels // self.radix, *x.shape[2:])
        gap = self.fc2(F.relu(self.fc1(x.sum(dim=1).mean((2, 3), keepdim=True))))
        weights = F.softmax(gap.view(batch, self.radix, -1), dim=1).reshape(batch, self.radix, -1, 1, 1)
        return (x * weights).sum(dim=1)


class Coordinates(nn.Module):
    """Pools along each side, joined, squeezed together and split again."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.squeeze, self.rows, self.columns = ConvBN(width, 12, 1), conv(12, width, 1), conv(12, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        _, _, h, w = x.size()
        y = torch.cat([x.mean(3, keepdim=True), x.mean(2, keepdim=True).permute(0, 1, 3, 2)], dim=2)
        rows, columns = torch.split(self.squeeze(y), [h, w], dim=2)
        return x * self.rows(rows).sigmoid() * self.columns(columns.permute(0, 1, 3, 2)).sigmoid()


class Triplet(nn.Module):
    """A mask for each pair of dimensions, of maxima and means along the third."""

    def __init__(self) -> None:
        super().__init__()
        self.masks = nn.ModuleList(nn.Conv2d(2, 1, 3, padding=1, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        out = []
        for mask, order in zip(self.masks, ((0, 2, 1, 3), (0, 1, 2, 3)), strict=True):
            y = x.permute(*order)
            out.append((y * mask(torch.stack([y.amax(1), y.mean(1)], 1)).sigmoid()).permute(*order))
        return sum(out) / len(out)


class Gate(nn.Module):
    """Attention gate of a U-Net: two maps of two sizes make one mask."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.down = ConvBN(width, 40, 3, 2)
        self.g, self.x, self.psi = conv(40, 12, 1), conv(width, 12, 1), conv(12, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        g = F.interpolate(self.g(self.down(x)), size=x.shape[-2:], mode="bilinear", align_corners=False)
        return x * torch.sigmoid(self.psi(F.relu(g + self.x(x))))


EVERYWHERE = "stem.0 before.0"
BLOCKS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "squeeze and excite with views": (Squeeze, f"{EVERYWHERE} block.fc.0"),
    "attention of channels and places": (Convolutional, f"{EVERYWHERE} block.mlp.0"),
    "a convolution over channels": (Neighbours, "stem.0"),
    "a global context": (Context, "stem.0"),
    "a non-local block": (NonLocal, "stem.0 block.g block.theta block.phi"),
    "a scaled non-local block": (lambda: NonLocal(scaled=True), "stem.0 block.g block.theta block.phi"),
    "attention of places and of channels": (Dual, "stem.0 block.query block.key"),
    "selective kernels": (Kernels, "stem.0 block.squeeze.0"),
    "split attention": (SplitAttention, "stem.0 block.fc1"),
    "coordinate attention": (Coordinates, f"{EVERYWHERE} block.squeeze.0"),
    "triplet attention": (Triplet, "stem.0"),
}
for name, (block, prunes) in BLOCKS.items():
    add(name, lambda block=block: Around(block()), prunes=prunes, keeps="after.0 head")
add("an attention gate", lambda: Around(Gate()), prunes=f"{EVERYWHERE} block.down.0 block.g block.x",
    keeps="after.0 head", options={"scope": "channels"})  # fmt: skip
