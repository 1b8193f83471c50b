"""Networks that tests share: random small ones, for what must hold for every network, and the embedded one."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pruneport.models.digits.network import digits_resnet
from small_networks import randomise_norms


class RandomNetwork(nn.Module):
    """A program of convolutions, additions, concatenations, splits and gates on 8 x 8 maps, then a linear head."""

    def __init__(self, seed: int, *, norms: bool = True, gates: bool = True, splits: bool = False) -> None:
        super().__init__()
        self.random = random.Random(seed)
        self.norms = norms
        self.layers = nn.ModuleList()
        self.program: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []
        self.widths = [3]
        self._conv(0, 8)
        steps = (
            ["conv", "identity", "projection", "concat", "grouped", "depthwise"] + ["gate"] * gates + ["split"] * splits
        )
        for step in self.random.choices(steps, k=5):
            getattr(self, f"_{step}")(len(self.widths) - 1)
        last = self._conv(self._concat(len(self.widths) - 1), 8)
        self.head = nn.Linear(self.widths[last], 5)
        randomise_norms(self, shift=1, gains=(-1, 1), variances=(0.5, 2))

    def _add(self, kind: str, sources: tuple[int, ...], width: int, *layers: nn.Module) -> int:
        start = len(self.layers)
        self.layers.extend(layers)
        self.program.append((kind, sources, tuple(range(start, len(self.layers)))))
        self.widths.append(width)
        return len(self.widths) - 1

    def _conv(self, source: int, width: int = 0, kernel: int = 3, groups: int = 1) -> int:
        width = width or self.random.choice([4, 6, 8, 12])
        bias = self.random.random() < 0.5
        layers: list[nn.Module] = [
            nn.Conv2d(self.widths[source], width, kernel, padding=kernel // 2, groups=groups, bias=bias)
        ]
        if self.norms:
            layers.append(nn.BatchNorm2d(width))
        if self.random.random() < 0.7:
            layers.append(nn.ReLU())
        return self._add("layers", (source,), width, *layers)

    def _identity(self, source: int) -> int:
        branch = self._conv(self._conv(source), self.widths[source])
        return self._add("add", (source, branch), self.widths[source])

    def _projection(self, source: int) -> int:
        branch = self._conv(self._conv(source), 8)
        return self._add("add", (self._conv(source, 8, kernel=1), branch), 8)

    def _concat(self, source: int) -> int:
        other = self.random.randrange(1, len(self.widths))
        return self._add("concat", (source, other), self.widths[source] + self.widths[other])

    def _grouped(self, source: int) -> int:
        return self._conv(self._conv(self._conv(source, 8), 12, groups=2))

    def _depthwise(self, source: int) -> int:
        return self._conv(self._conv(source, self.widths[source], groups=self.widths[source]), kernel=1)

    def _split(self, source: int) -> int:
        first = self.widths[source] // 3 or 1
        self._add("head part", (source, first), first)
        rest = self._add("tail part", (source, first), self.widths[source] - first)
        self._conv(rest - 1)
        return self._conv(rest)

    def _gate(self, source: int) -> int:
        width = self.widths[source]
        return self._add("gate", (source,), width, nn.Conv2d(width, 4, 1), nn.Conv2d(4, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        tensors = [x]
        for kind, sources, indices in self.program:
            layers = [self.layers[index] for index in indices]
            first = tensors[sources[0]]
            if kind == "layers":
                result = nn.Sequential(*layers)(first)
            elif kind == "add":
                result = torch.relu(first + tensors[sources[1]])
            elif kind == "concat":
                result = torch.cat([first, tensors[sources[1]]], 1)
            elif kind == "gate":
                result = first * torch.sigmoid(layers[1](torch.relu(layers[0](first.mean((2, 3), keepdim=True)))))
            else:
                parts = torch.split(first, [sources[1], first.shape[1] - sources[1]], dim=1)
                result = parts[kind == "tail part"]
            tensors.append(result)
        out: Tensor = self.head(tensors[-1].mean((2, 3)))
        return out


@pytest.fixture(scope="session")
def random_network() -> Callable[..., nn.Module]:
    """Build ``RandomNetwork`` in eval mode; the same seed gives the same weights."""

    def build(seed: int, **options: bool) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return RandomNetwork(seed, **options).eval()

    return build


@pytest.fixture(scope="session")
def digits() -> nn.Module:
    """The residual network with norms that do not pass everything through."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = digits_resnet().eval()
        randomise_norms(network, shift=1, gains=(1, 1), variances=(0.5, 2))
    return network
