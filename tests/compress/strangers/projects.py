"""How people write modules: containers, computed names, sizes as numbers, sub-classes, adapters, entry points."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention_heads import InputWidth
from .registry import add, conv, parameter
from .styles import Plain


class Named(nn.Module):
    """Widths in a list, layers in a dictionary, by computed names and nested."""

    def __init__(self, widths: tuple[int, ...] = (16, 24, 32, 24)) -> None:
        super().__init__()
        self.widths, self.num_features = list(widths), widths[-1]
        self.layers = nn.ModuleDict({"stem": nn.Sequential(nn.Sequential(conv(3, widths[0])), nn.ReLU())})
        for i, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
            setattr(self, f"conv{i}", conv(inputs, outputs, stride=2))
            self.layers[f"norm{i}"] = nn.BatchNorm2d(outputs)
        self.head = nn.ModuleList([nn.Identity(), nn.Linear(self.num_features, 5)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers["stem"](x)
        for i in range(len(self.widths) - 1):
            x = F.relu(self.layers[f"norm{i}"](getattr(self, f"conv{i}")(x)))
        x = F.avg_pool2d(x, kernel_size=x.size()[2:]).view(-1, self.num_features)
        for layer in self.head:
            x = layer(x)
        return x


class Flat(nn.Module):
    """A classifier behind a flattened map of a size that is written down, as CIFAR's first networks."""

    def __init__(self, by_number: bool) -> None:
        super().__init__()
        self.by_number = by_number
        self.conv1, self.conv2, self.pool = nn.Conv2d(3, 16, 5), nn.Conv2d(16, 20, 5), nn.MaxPool2d(2, 2)
        self.fc1, self.fc2, self.fc3 = nn.Linear(20 * 5 * 5, 48), nn.Linear(48, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.conv2(self.pool(F.relu(self.conv1(x))))))
        x = x.view(-1, 20 * 5 * 5) if self.by_number else x.view(-1, int(torch.tensor(x.shape[1:]).prod()))
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


class Biased(nn.Conv2d):
    """A sub-class of convolution: same padding by hand, and a bias that is added by hand."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3) -> None:
        super().__init__(inputs, outputs, kernel, bias=False)
        self.shift = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        side = self.kernel_size[0] // 2
        y = self._conv_forward(F.pad(x, [side] * 4), self.weight, None)
        return y + self.shift.view(1, -1, 1, 1)


class Prepared(nn.Module):
    """Images are normalised by buffers and brought from channels last; shapes are asserted."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), persistent=False)
        self.in_channels, self.stem, self.body = 3, Biased(3, 20), Biased(20, 32)
        self.last, self.fc = Biased(32, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        assert x.ndim == 4 and x.shape[1] == self.in_channels, f"got {x.shape}"  # noqa: PT018
        x = ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        return self.fc(F.relu(self.last(F.relu(self.body(F.relu(self.stem(x)))))).mean([-2, -1]))


class Adapter(nn.Module):
    """A frozen trunk, a low-rank adapter beside a layer, and a trained head."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Plain().requires_grad_(False)
        self.trunk.fc = nn.Identity()
        self.base = nn.Linear(24, 32).requires_grad_(False)
        self.down, self.up = nn.Linear(24, 8, bias=False), nn.Linear(8, 32, bias=False)
        self.mid, self.head = nn.Linear(32, 20), nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.trunk(x)
        return self.head(F.relu(self.mid(F.relu(self.base(y) + 2.0 * self.up(self.down(y))))))


class Lazy(nn.Module):
    """Layers whose inputs are found at the first call, weights in a list, activations in place."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.LazyConv2d(20, 3, padding=1), nn.LazyConv2d(28, 3, padding=1)])
        self.gains = nn.ParameterList([parameter(20, 1, 1), parameter(28, 1, 1)])
        self.last, self.head = nn.LazyLinear(24), nn.LazyLinear(5)
        self(torch.zeros(1, 3, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        for layer, gain in zip(self.layers, self.gains, strict=True):
            x = layer(x)
            x *= gain
            x.relu_().add_(0.1)
        return self.head(F.relu(self.last(x.mean(-1).mean(-1)), inplace=True))


class Experiment(nn.Module):
    """As DINOv2's entry point: features in a dictionary, and everything passed on as it came."""

    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        self.patch_embed, self.cls_token = nn.Conv2d(3, dim, 4, 4), nn.Parameter(torch.randn(1, 1, dim))
        self.pos_embed = nn.Parameter(0.1 * torch.randn(1, 17, dim))
        self.norm1, self.attn, self.gamma = nn.LayerNorm(dim), InputWidth(dim), parameter(dim)
        self.norm2, self.fc1, self.fc2 = nn.LayerNorm(dim), nn.Linear(dim, 48), nn.Linear(48, dim)
        self.norm, self.head = nn.LayerNorm(dim), nn.Identity()

    def forward_features(self, x: Tensor, masks: Tensor | None = None) -> dict[str, Any]:
        y = self.patch_embed(x).flatten(2).transpose(1, 2)
        y = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), y), dim=1) + self.pos_embed
        y = y + self.gamma * self.attn(self.norm1(y))
        y = y + self.fc2(F.gelu(self.fc1(self.norm2(y))))
        out = self.norm(y)
        return {"x_norm_clstoken": out[:, 0], "x_norm_patchtokens": out[:, 1:], "masks": masks}

    def forward(self, *args: Any, is_training: bool = False, **kwargs: Any) -> Any:
        ret = self.forward_features(*args, **kwargs)
        return ret if is_training else self.head(ret["x_norm_clstoken"])


add("layers by computed names", Named, prunes="layers.stem.0.0 conv0 conv1 layers.norm0", keeps="conv2 head.1")
for kind in (True, False):
    add(f"a flattened map of {'a number' if kind else 'its own size'}", lambda kind=kind: Flat(kind), (3, 32, 32),
        prunes="conv1 fc1" if kind else "conv1 conv2 fc1", keeps="fc2 fc3")  # fmt: skip
add("convolutions of a sub-class", Prepared, prunes="stem body", keeps="last fc", onnx=True)
add("layers that are built at the first call", Lazy, prunes="layers.0 layers.1 gains.0 gains.1", keeps="last head")
add("a trunk with an adapter", Adapter, prunes="trunk.stem.0 trunk.body.0 trunk.last.0 base up", keeps="mid head",
    options={"scope": "channels"})  # fmt: skip
add("an entry point that passes all on", Experiment, prunes="attn.qkv fc1", keeps="patch_embed norm", onnx=True)
add(
    "nothing but the representation",
    lambda: nn.Sequential(conv(3, 24), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5)),
    refuses="representation",
)
add("nothing but an output", lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, 5)), refuses="output")
