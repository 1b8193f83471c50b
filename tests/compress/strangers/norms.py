"""Norms of every kind, from torch and by hand, over channels, places and weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from .attention_maps import Around
from .registry import ConvBN, add, conv, parameter


class Inside(nn.Module):
    """An inner width with the given norm between two convolutions."""

    def __init__(self, norm: nn.Module, inner: int = 32, residual: bool = False) -> None:
        super().__init__()
        self.inner, self.norm, self.out, self.residual = conv(32, inner), norm, conv(inner, 32), residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.out(F.relu(self.norm(self.inner(x))))
        return x + y if self.residual else y


class Permuted(nn.Module):
    """A norm over the last dimension, brought there and back."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ByHand(nn.Module):
    """A norm over channels written out; ``kind`` says which."""

    def __init__(self, kind: str, width: int = 32) -> None:
        super().__init__()
        self.kind, self.eps, self.normalized_shape = kind, 1e-6, (width,)
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.tau = parameter(1, width, 1, 1)

    def affine(self, x: Tensor) -> Tensor:
        return self.weight[:, None, None] * x + self.bias[:, None, None]

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "layer":
            u = x.mean(1, keepdim=True)
            s = (x - u).pow(2).mean(1, keepdim=True)
            return self.affine((x - u) / torch.sqrt(s + self.eps))
        if self.kind == "layer by var":
            return self.affine((x - x.mean(1, True)) * torch.rsqrt(x.var(1, unbiased=False, keepdim=True) + self.eps))
        if self.kind == "standard deviation":
            return self.affine((x - x.mean(dim=1, keepdim=True)) / (x.std(dim=1, keepdim=True) + self.eps))
        if self.kind == "functional":
            return F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias).permute(
                0, 3, 1, 2
            )
        if self.kind == "root":
            return self.affine(x * torch.rsqrt(x.square().mean(1, keepdim=True) + self.eps))
        if self.kind == "length":
            return self.affine(F.normalize(x, dim=1) * x.shape[1] ** 0.5)
        if self.kind == "unit length":
            return self.affine(F.normalize(x, dim=1))
        if self.kind == "pixel":
            return x / torch.sqrt((x**2).mean(dim=1, keepdim=True) + 1e-8)
        if self.kind == "response":
            share = x.norm(p=2, dim=(2, 3), keepdim=True)
            return self.affine(x * share / (share.mean(dim=1, keepdim=True) + self.eps)) + x
        if self.kind == "filter response":
            y = self.affine(x * torch.rsqrt(x.pow(2).mean(dim=(2, 3), keepdim=True) + self.eps))
            return torch.max(y, self.tau)
        both = torch.cat([x.mean((2, 3)), x.std((2, 3))], 1)  # instance norm by hand
        mean, deviation = both.chunk(2, 1)
        return self.affine((x - mean[..., None, None]) / (deviation[..., None, None] + self.eps))


class Standardised(nn.Conv2d):
    """A convolution whose weight is standardised at each call, with a gain."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        mean = self.weight.mean(dim=(1, 2, 3), keepdim=True)
        std = self.weight.std(dim=(1, 2, 3), keepdim=True) + 1e-5
        return F.conv2d(x, self.gain * (self.weight - mean) / std, self.bias, self.stride, self.padding)


class Pair(nn.Module):
    """Two convolutions that a wrapper was put around."""

    def __init__(self, wrap: Callable[..., nn.Module], inner: int = 40) -> None:
        super().__init__()
        self.a, self.b, self.norm = wrap(conv(32, inner)), wrap(conv(inner, 32)), nn.BatchNorm2d(inner)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.leaky_relu(self.norm(self.a(x)), 0.1))


class StandardPair(nn.Module):
    """Two of the standardised ones."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = Standardised(32, 40, 3, padding=1), Standardised(40, 32, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)))


class Frozen(nn.Module):
    """A batch norm whose statistics and weights are buffers, multiplied out."""

    def __init__(self, n: int = 32) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(n) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        w, b, rv, rm = (t.reshape(1, -1, 1, 1) for t in (self.weight, self.bias, self.running_var, self.running_mean))
        scale = w * (rv + 1e-5).rsqrt()
        return x * scale + (b - rm * scale)


class Modulated(nn.Module):
    """A norm without its own weights, scaled and shifted by what other layers make (FiLM, AdaIN, SPADE)."""

    def __init__(self, kind: str, width: int = 32) -> None:
        super().__init__()
        self.kind, self.norm = kind, nn.InstanceNorm2d(width)
        self.style, self.both = nn.Sequential(nn.Linear(32, 20), nn.ReLU()), nn.Linear(20, 2 * width)
        self.shared, self.gamma, self.beta = ConvBN(32, 20), conv(20, width), conv(20, width)
        self.inner, self.out = conv(32, width), conv(width, 32)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.inner(x))
        if self.kind == "maps":
            shared = self.shared(x)
            return self.out(y * (1 + self.gamma(shared)) + self.beta(shared))
        gamma, beta = self.both(self.style(x.mean((2, 3))))[:, :, None, None].chunk(2, dim=1)
        return self.out((1 + gamma) * y + beta)


EDGE, B = "stem.0 before.0", "block."
NORMS: dict[str, Callable[[], nn.Module]] = {
    "a layer norm by permutation": lambda: Permuted(nn.LayerNorm(32)),
    "a root norm by permutation": lambda: Permuted(nn.RMSNorm(32)),
    "a group norm": lambda: nn.GroupNorm(4, 32),
    "a group norm of one group": lambda: nn.GroupNorm(1, 32),
    "a group norm of each channel": lambda: nn.GroupNorm(32, 32),
    "an instance norm": lambda: nn.InstanceNorm2d(32, affine=True),
    "an instance norm that remembers": lambda: nn.InstanceNorm2d(32, affine=True, track_running_stats=True),
    "a batch norm without weights": lambda: nn.BatchNorm2d(32, affine=False),
    "a batch norm without memory": lambda: nn.BatchNorm2d(32, track_running_stats=False),
    "a frozen batch norm": Frozen,
    "a norm of neighbouring channels": lambda: nn.LocalResponseNorm(3),
    "a norm of channels and places": lambda: nn.LayerNorm([32, 8, 8]),
}
STAYS = (
    "a root norm by permutation",
    "a group norm of each channel",
    "a norm of neighbouring channels",
    "a norm of channels and places",
)
HANDS = ("layer", "layer by var", "standard deviation", "functional", "root", "length", "unit length", "pixel",
         "response", "filter response", "instance")  # fmt: skip
NORMS |= {f"a norm by hand with {kind}": lambda kind=kind: ByHand(kind) for kind in HANDS}
for name, norm in NORMS.items():
    prunes = f"{EDGE} {B}out" + ("" if name in STAYS or name.endswith("length") else f" {B}inner")
    exported = name in ("a norm by hand with layer", "a group norm", "a norm by hand with response")
    add(name, lambda norm=norm: Around(Inside(norm())), prunes=prunes, keeps="after.0 head", onnx=exported)
WRAPS: dict[str, Callable[..., nn.Module]] = {
    "weight norm": parametrizations.weight_norm,
    "weight norm of old": weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "spectral norm of old": spectral_norm,
}
for name, wrap in WRAPS.items():
    add(f"a {name}", lambda wrap=wrap: Around(Pair(wrap)), prunes=f"{EDGE} {B}a {B}b", keeps="after.0 head")
add("standardised weights", lambda: Around(StandardPair()), prunes=f"{EDGE} {B}a {B}b", keeps="after.0 head", onnx=True)
for kind in ("maps", "style"):
    prunes = f"stem.0 before.0 {B}inner {B}out" + (f" {B}shared.0" if kind == "maps" else f" {B}style.0")
    add(f"a norm modulated by {kind}", lambda kind=kind: Around(Modulated(kind)), prunes=prunes, keeps="after.0 head",
        options={"scope": "channels"})  # fmt: skip
