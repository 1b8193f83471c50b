"""Whole networks in small: mixers, hybrids of convolution and attention, pooling in place of attention, pyramids."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention_maps import Around
from .registry import ConvBN, add, conv, parameter


class Mixer(nn.Module):
    """Perceptrons over places and over channels in turn, or a gate that mixes places."""

    def __init__(self, kind: str, dim: int = 32, places: int = 16) -> None:
        super().__init__()
        self.kind, self.patch = kind, nn.Conv2d(3, dim, 4, 4)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(24)
        self.tokens = nn.Sequential(nn.Linear(places, 24), nn.GELU(), nn.Linear(24, places))
        self.channels = nn.Sequential(nn.Linear(dim, 48), nn.GELU(), nn.Linear(48, dim))
        self.wide, self.narrow, self.spatial = nn.Linear(dim, 48), nn.Linear(24, dim), nn.Conv1d(places, places, 1)
        self.neck, self.head = nn.Linear(dim, 20), nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.patch(x).flatten(2).transpose(1, 2)
        if self.kind == "places":
            y = y + self.tokens(self.norm1(y).transpose(1, 2)).transpose(1, 2)
            y = y + self.channels(self.norm2(y))
        elif self.kind == "gate":
            u, v = F.gelu(self.wide(self.norm1(y))).chunk(2, dim=-1)
            y = y + self.narrow(u * self.spatial(self.norm3(v)))
        else:  # as FNet: no weights at all
            y = self.norm1(y + torch.fft.fft2(y.to(torch.complex128)).real.to(y.dtype) / 16)
            y = y + self.channels(y)
        return self.head(F.relu(self.neck(y.mean(1))))


class Next(nn.Module):
    """ConvNeXt's block: depthwise, a norm in channels last, two linear layers, a layer scale; with GRN or without."""

    def __init__(self, response: bool, dim: int = 32) -> None:
        super().__init__()
        self.depth, self.norm = conv(dim, dim, 7, groups=dim), nn.LayerNorm(dim, eps=1e-6)
        self.up, self.down, self.gamma = nn.Linear(dim, 48), nn.Linear(48, dim), parameter(dim)
        self.response, self.gain, self.shift = response, parameter(1, 1, 1, 48), parameter(1, 1, 1, 48)

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.up(self.norm(self.depth(x).permute(0, 2, 3, 1))))
        if self.response:
            size = torch.norm(y, p=2, dim=(1, 2), keepdim=True)
            y = self.gain * (y * size / (size.mean(dim=-1, keepdim=True) + 1e-6)) + self.shift + y
        return x + (self.gamma * self.down(y)).permute(0, 3, 1, 2)


class Inverted(nn.Module):
    """MobileNetV3's block: expand, depthwise, squeeze and excite with hard gates, project."""

    def __init__(self, width: int = 32, inner: int = 48, squeeze: int = 12) -> None:
        super().__init__()
        self.expand = ConvBN(width, inner, 1, act=nn.Hardswish)
        self.depth = ConvBN(inner, inner, 5, 1, inner, nn.Hardswish)
        self.fc1, self.fc2, self.project = (
            conv(inner, squeeze, 1),
            conv(squeeze, inner, 1),
            ConvBN(inner, width, 1, act=None),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.depth(self.expand(x))
        gate = F.hardsigmoid(self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(y, 1)))))
        return x + self.project(y * gate)


class Pooling(nn.Module):
    """PoolFormer's block: a mean over neighbours less the place itself, between norms of one group."""

    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        self.norm1, self.norm2, self.pool = (
            nn.GroupNorm(1, dim),
            nn.GroupNorm(1, dim),
            nn.AvgPool2d(3, 1, 1, count_include_pad=False),
        )
        self.mlp, self.scale = nn.Sequential(conv(dim, 48, 1), nn.GELU(), conv(48, dim, 1)), parameter(dim, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.scale * (self.pool(y) - y)
        return x + self.mlp(self.norm2(x))


class Mobile(nn.Module):
    """MobileViT's block: a map is unfolded into patches, an encoder runs over them, and it is folded again."""

    def __init__(self, width: int = 32, dim: int = 24, patch: int = 2) -> None:
        super().__init__()
        self.patch, self.local, self.enter = patch, ConvBN(width, width), conv(width, dim, 1, bias=False)
        self.encoder = nn.TransformerEncoderLayer(dim, 2, 40, batch_first=True, norm_first=True)
        self.leave, self.fuse = ConvBN(dim, width, 1), ConvBN(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.enter(self.local(x))
        b, c, h, w = y.shape
        p = self.patch
        y = y.reshape(b * c * h // p, p, w // p, p).transpose(1, 2).reshape(b, c, h * w // p**2, p * p)
        y = self.encoder(y.transpose(1, 3).reshape(b * p * p, h * w // p**2, c))
        y = y.view(b, p * p, h * w // p**2, -1).transpose(1, 3).reshape(b * c * h // p, w // p, p, p)
        return self.fuse(torch.cat([x, self.leave(y.transpose(1, 2).reshape(b, c, h, w))], 1))


class Large(nn.Module):
    """VAN's block: a depthwise and a dilated depthwise filter make a mask, without a sigmoid."""

    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        self.enter, self.leave = conv(dim, 40, 1), conv(40, dim, 1)
        self.near, self.far = conv(40, 40, 5, groups=40), nn.Conv2d(40, 40, 3, padding=3, dilation=3, groups=40)
        self.point = conv(40, 40, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.enter(x))
        return x + self.leave(y * self.point(self.far(self.near(y))))


class Star(nn.Module):
    """Two linear maps multiplied, and InceptionNeXt's split of a depthwise filter by computed widths."""

    def __init__(self, dim: int = 32, share: float = 0.25) -> None:
        super().__init__()
        part = int(dim * share)
        self.sizes = (dim - 3 * part, part, part, part)
        self.square, self.wide = (
            conv(part, part, groups=part),
            nn.Conv2d(part, part, (1, 7), padding=(0, 3), groups=part),
        )
        self.high = nn.Conv2d(part, part, (7, 1), padding=(3, 0), groups=part)
        self.f1, self.f2, self.g = conv(dim, 40, 1), conv(dim, 40, 1), conv(40, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        same, square, wide, high = torch.split(x, self.sizes, dim=1)
        y = torch.cat((same, self.square(square), self.wide(wide), self.high(high)), dim=1)
        return self.g(F.relu6(self.f1(y)) * self.f2(y))


class Selective(nn.Module):
    """A state-space block in small: two halves, a causal filter over places, a gate."""

    def __init__(self, dim: int = 32, inner: int = 40) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(dim, 2 * inner), nn.Linear(inner, dim)
        self.filter, self.decay = nn.Conv1d(inner, inner, 4, padding=3, groups=inner), parameter(inner)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        y, z = self.enter(x.flatten(2).transpose(1, 2)).chunk(2, dim=-1)
        y = F.silu(self.filter(y.transpose(1, 2))[:, :, : h * w].transpose(1, 2))
        y = y * torch.exp(-self.decay) + y.cumsum(dim=1) / (h * w)
        return x + self.leave(y * F.silu(z)).transpose(1, 2).reshape(b, c, h, w)


class Scene(nn.Module):
    """PSPNet in small: pools of several sizes are spread out and joined, and one of all places is appended."""

    def __init__(self, sizes: tuple[int, ...] = (1, 2, 4)) -> None:
        super().__init__()
        self.stem, self.body = ConvBN(3, 20, 3, 2), ConvBN(20, 32)
        self.stages = nn.ModuleList(nn.Sequential(nn.AdaptiveAvgPool2d(s), conv(32, 12, 1, bias=False)) for s in sizes)
        self.mid, self.last, self.head = ConvBN(32 + 36, 28), ConvBN(28 + 28, 24), nn.Conv2d(24, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(self.stem(x))
        h, w = y.size(2), y.size(3)
        priors = [F.interpolate(stage(y), size=(h, w), mode="bilinear", align_corners=False) for stage in self.stages]
        y = self.mid(torch.cat([*priors, y], 1))
        everywhere = y.amax((2, 3), keepdim=True).expand(-1, -1, h, w)
        return F.interpolate(self.head(self.last(torch.cat([y, everywhere], 1))), scale_factor=2, mode="bilinear")


class Two(nn.Module):
    """A convolutional and a linear branch of one image, joined; the second reads the flattened image itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(3, 24, stride=2), conv(24, 20, stride=2)
        self.fc1, self.fc2 = nn.Linear(3 * 16 * 16, 40), nn.Linear(40, 28)
        self.norm, self.mid, self.head = nn.BatchNorm1d(20 * 16 + 28), nn.Linear(20 * 16 + 28, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        one = torch.flatten(F.relu(self.conv2(F.relu(self.conv1(x)))), 1)
        other = F.relu(self.fc2(F.relu(self.fc1(x.reshape(x.shape[0], -1)))))
        return self.head(F.relu(self.mid(self.norm(torch.cat([one, other], dim=1)))))


EDGE, FIXED = "stem.0 before.0", "after.0 head"
STREAM = {"scope": "channels"}
for kind, prunes in {"places": "tokens.0 channels.0", "gate": "wide", "spectra": "channels.0"}.items():
    add(f"a mixer by {kind}", lambda kind=kind: Mixer(kind), prunes=prunes, keeps="neck head")
    add(f"a mixer by {kind} and its stream", lambda kind=kind: Mixer(kind), keeps="neck head", options=STREAM,
        prunes=prunes if kind == "spectra" else f"{prunes} patch norm1")  # fmt: skip
for name, block, prunes in (
    ("a modern block", lambda: Next(False), "up"),
    ("a modern block with responses", lambda: Next(True), "up"),
    ("an inverted block", Inverted, "expand.0 depth.0 fc1"),
    ("a block that pools", Pooling, "mlp.0"),
    ("a block of large kernels", Large, "enter near far point"),
    ("a selective block", Selective, "enter filter"),
):
    inside = " ".join(f"block.{layer}" for layer in prunes.split())
    add(name, lambda block=block: Around(block()), prunes=f"stem.0 {inside}", keeps=FIXED)
    add(f"{name} and its stream", lambda block=block: Around(block()), prunes=f"{EDGE} {inside}", keeps=FIXED,
        options=STREAM, onnx=name == "a modern block with responses")  # fmt: skip
PATCHES = "block.encoder.linear1 block.encoder.self_attn block.fuse.0"
add("a block of patches", lambda: Around(Mobile()), prunes=f"{EDGE} {PATCHES}", keeps=FIXED)
add("a block of stars", lambda: Around(Star()), prunes=f"{EDGE} block.f1 block.f2 block.g block.wide", keeps=FIXED)
add("pools of several sizes", Scene, prunes="stem.0 body.0 stages.0.1 stages.2.1 mid.0", keeps="last.0 head")
add("a branch of convolutions and one of layers", Two, prunes="conv1 conv2 fc1 fc2 norm", keeps="mid head")
