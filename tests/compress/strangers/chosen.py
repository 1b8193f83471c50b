"""Values that choose what is computed, weights that layers make, maps that are written part by part, other shapes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention_maps import Around
from .own_weights import between
from .registry import ConvBN, add, conv, parameter, pooled


class LookedUp(nn.Module):
    """The place of the largest (or smallest) hidden channel picks a row of a table."""

    def __init__(self, by: str) -> None:
        super().__init__()
        self.by = by
        self.stem, self.body = ConvBN(3, 16), ConvBN(16, 24)
        self.route, self.table, self.fc = nn.Linear(24, 6), nn.Embedding(6, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.route(pooled(self.body(self.stem(x))))
        place = scores.argmax(1) if self.by == "argmax" else scores.min(dim=-1).indices
        return self.fc(F.relu(self.table(place)))


class Switched(nn.Module):
    """Each place goes to one expert; their weights are stacked in parameters."""

    def __init__(self, width: int = 24, experts: int = 3, hidden: int = 32) -> None:
        super().__init__()
        self.gate = nn.Linear(width, experts, bias=False)
        self.up = nn.Parameter(torch.randn(experts, width, hidden) * width**-0.5)
        self.down = nn.Parameter(torch.randn(experts, hidden, width) * hidden**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
        share, chosen = self.gate(rows).softmax(-1).max(-1)
        out = torch.zeros_like(rows)
        for expert in range(self.up.shape[0]):
            mine = (chosen == expert).nonzero(as_tuple=True)[0]
            out.index_add_(0, mine, F.gelu(rows[mine] @ self.up[expert]) @ self.down[expert] * share[mine, None])
        return out.view(x.shape[0], x.shape[2], x.shape[3], -1).permute(0, 3, 1, 2)


class Instances(nn.Module):
    """Masks of instances by filters that a controller makes, as CondInst does."""

    def __init__(self, width: int = 4, instances: int = 3) -> None:
        super().__init__()
        self.width, self.instances = width, instances
        self.sizes = [width * width, width, width, 1]
        self.body = nn.Sequential(ConvBN(3, 16, stride=2), ConvBN(16, 24))
        self.maps, self.control = (
            nn.Sequential(ConvBN(24, 16), nn.Conv2d(16, width, 1)),
            nn.Conv2d(24, sum(self.sizes), 1),
        )
        self.classes = conv(24, 6)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.body(x)
        maps, classes = self.maps(x), self.classes(x)
        b, c, h, w = maps.shape
        scores, places = classes.sigmoid().flatten(2).max(1)[0].topk(self.instances, dim=1)
        made = self.control(x).flatten(2).gather(2, places[:, None].expand(-1, sum(self.sizes), -1))
        first, second, bias, last = made.permute(0, 2, 1).reshape(-1, sum(self.sizes)).split(self.sizes, dim=1)
        count = b * self.instances
        maps = maps[:, None].expand(b, self.instances, c, h, w).reshape(1, count * c, h, w)
        maps = F.relu(F.conv2d(maps, first.reshape(-1, self.width, 1, 1), bias.reshape(-1), groups=count))
        masks = F.conv2d(maps, second.reshape(-1, self.width, 1, 1), last.reshape(-1), groups=count)
        return {"masks": masks.reshape(b, self.instances, h, w), "scores": scores, "places": places}


class Modulated(nn.Module):
    """A generator whose weights are modulated and demodulated by a style, as StyleGAN's."""

    def __init__(self) -> None:
        super().__init__()
        self.style = nn.Sequential(conv(3, 16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 12))
        self.start, self.gain, self.image = parameter(1, 12, 8, 8), nn.Linear(12, 12), nn.Linear(12, 16)
        self.weight, self.last = nn.Parameter(torch.randn(16, 12, 3, 3)), nn.Parameter(torch.randn(3, 16, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        style = self.style(x)
        y = F.leaky_relu(self.apply_weight(self.start.repeat(len(x), 1, 1, 1), self.weight, self.gain(style)))
        return self.apply_weight(y, self.last, self.image(style))

    def apply_weight(self, x: Tensor, weight: Tensor, gain: Tensor) -> Tensor:
        b, c, h, w = x.shape
        own = weight[None] * gain.view(b, 1, c, 1, 1)
        own = own * (own.square().sum((2, 3, 4), keepdim=True) + 1e-6).rsqrt()
        y = F.conv2d(x.reshape(1, b * c, h, w), own.flatten(0, 1), padding=weight.shape[-1] // 2, groups=b)
        return y.view(b, -1, h, w)


class Splines(nn.Module):
    """A layer of functions (a Kolmogorov-Arnold network's): bumps of each input, weighed for each output."""

    def __init__(self, inputs: int, outputs: int, bumps: int = 5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, bumps) * (inputs * bumps) ** -0.5)
        self.register_buffer("centres", torch.linspace(-1, 1, bumps))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("big,oig->bo", torch.exp(-4 * (x.unsqueeze(-1) - self.centres).square()), self.weight)


class Pairs(nn.Module):
    """Two images in one batch (as RAFT's), instance norms without weights, an inner product of all places."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = conv(3, 16, stride=2), nn.InstanceNorm2d(16), conv(16, 24, stride=2)
        self.mix, self.last = nn.Sequential(ConvBN(16, 24), ConvBN(24, 16)), conv(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        both = self.second(F.relu(self.norm(self.first(torch.cat([x, x.flip(-1)])))))
        left, right = both.flatten(2).chunk(2)
        return self.last(self.mix((left.transpose(1, 2) @ right / math.sqrt(24)).unflatten(2, both.shape[2:])))


class Compared(nn.Module):
    """Features of two images, compared in four ways, and one score."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(ConvBN(3, 16), ConvBN(16, 24))
        self.fc1, self.fc2 = nn.Linear(96, 16), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = pooled(self.body(x)), pooled(self.body(x.flip(-1)))
        both = torch.cat([(a - b).abs(), a * b, torch.maximum(a, b), (a - b) ** 2], dim=-1)
        return self.fc2(F.relu(self.fc1(both))).sigmoid().squeeze(-1)


class Quantised(nn.Conv2d):
    """Weights are rounded to the 8 bit of the largest of each filter."""

    def forward(self, x: Tensor) -> Tensor:
        step = self.weight.detach().abs().amax((1, 2, 3), keepdim=True) / 127
        return self._conv_forward(x, (self.weight / step).round().clamp(-128, 127) * step, self.bias)


class Normed(nn.Conv2d):
    """Weights standardised by a batch norm, as in NFNets of timm."""

    def __init__(self, *sizes: int, **options: Any) -> None:
        super().__init__(*sizes, **options)
        self.scale = self.weight[0].numel() ** -0.5

    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, training=True, eps=1e-6)
        return self._conv_forward(x, weight.reshape_as(self.weight) * self.scale, self.bias)


def shifted(n: Any, y: Tensor) -> Tensor:
    count, moved = y.shape[1] // 4, y.clone()
    moved[:, :count, :, :-1] = y[:, :count, :, 1:]
    moved[:, count : 2 * count, :, 1:] = y[:, count : 2 * count, :, :-1]
    return moved


def volume(n: Any, y: Tensor) -> Tensor:
    made = y.new_zeros(y.shape[0], y.shape[1], 3, *y.shape[2:])
    for shift in range(3):
        made[:, :, shift, :, shift:] = y[..., shift:] * y[..., : y.shape[-1] - shift]
    return made.mean(2)


def ringed(n: Any, y: Tensor) -> Tensor:
    return n.left(y) * n.right(F.pad(y, (1, 1, 1, 1), mode="circular"))


def solid(n: Any, y: Tensor) -> Tensor:
    y = F.max_pool3d(n.deep(y.unsqueeze(2).expand(-1, -1, 4, -1, -1)), (2, 1, 1))
    return F.interpolate(F.relu(n.up(F.avg_pool3d(y, 2))), size=y.shape[2:], mode="trilinear").mean(2)


def weighed_by_one(layer: nn.Conv2d) -> nn.Conv2d:
    return nn.utils.parametrizations.weight_norm(layer, dim=None)  # type: ignore[arg-type]  # one gain for all


add("a table looked up by argmax", lambda: LookedUp("argmax"), prunes="stem.0", keeps="route fc")
add("a table looked up by min", lambda: LookedUp("min"), prunes="stem.0", keeps="route fc")
add("experts of stacked weights", lambda: Around(nn.Sequential(ConvBN(32, 24), Switched(), ConvBN(24, 32))),
    prunes="stem.0", keeps="block.1.gate head")  # fmt: skip
add("masks by filters that are made", Instances, prunes="body.0.0 maps.0.0", keeps="classes")
add("weights modulated by a style", Modulated, prunes="style.0")
add("layers of functions", lambda: nn.Sequential(ConvBN(3, 16), ConvBN(16, 24), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    Splines(24, 12), Splines(12, 5)), prunes="0.0")  # fmt: skip
add("two images in one batch", Pairs, prunes="first second mix.0.0", keeps="last")
add("features of two images compared", Compared, prunes="body.0.0 body.1.0 fc1", keeps="fc2",
    options={"prune_representation": True})  # fmt: skip
add("weights rounded by the largest", lambda: Around(Quantised(32, 32, 3, padding=1)), prunes="stem.0 before.0")
add("weights standardised by a batch norm", lambda: Around(Normed(32, 32, 3, padding=1)), prunes="stem.0 before.0")
add("a weight norm of one gain", lambda: Around(weighed_by_one(conv(32, 32))), prunes="stem.0 before.0")
between("channels shifted into a clone", shifted, prunes="a")
between("a volume that is written", volume, prunes="a")
between("padding in a ring", ringed, lambda: {
    "left": conv(32, 32), "right": nn.Conv2d(32, 32, 3)}, prunes="a")  # fmt: skip
between("three dimensions", solid, lambda: {
    "deep": nn.Conv3d(32, 24, 3, padding=1, padding_mode="replicate"), "up": nn.ConvTranspose3d(24, 20, 2, 2)},
    prunes="a deep up", out=20)  # fmt: skip
