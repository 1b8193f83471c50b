"""Networks of several inputs, and of others than images: each with an example and what it is given by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["NETWORKS", "Given"]


class Given(NamedTuple):
    """A network and an example of its inputs; ``names`` are those that its ONNX file has."""

    build: Callable[[], nn.Module]
    example: Callable[[], Any]
    names: tuple[str, ...]


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class Siamese(nn.Module):
    """Two images through one stem, concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(3, 16), _conv(16, 24, 2))
        self.fused = _conv(48, 32)
        self.head = nn.Linear(32, 5)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        fused = self.fused(torch.cat([self.stem(left), self.stem(right)], 1))
        scores: Tensor = self.head(fused.mean((2, 3)))
        return scores


class Film(nn.Module):
    """An image whose features a vector of metadata scales and shifts; a single number weighs it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = _conv(3, 16), _conv(16, 32, 2)
        self.film = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 64))
        self.head = nn.Linear(32, 5)

    def forward(self, image: Tensor, metadata: Tensor, weight: Tensor | float = 1.0) -> dict[str, Tensor]:
        scale, shift = self.film(metadata)[:, :, None, None].chunk(2, 1)
        features = self.second(self.first(image))
        features = torch.relu(features * (1 + weight * scale) + shift)
        return {"scores": self.head(features.mean((2, 3))), "image": features.mean(1)}


class Text(nn.Module):
    """Token ids through an embedding and convolutions over time."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.body = nn.Sequential(nn.Conv1d(16, 32, 3, 1, 1), nn.ReLU(), nn.Conv1d(32, 24, 3, 1, 1), nn.ReLU())
        self.head = nn.Linear(24, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        scores: Tensor = self.head(self.body(self.embedding(tokens).transpose(1, 2)).amax(2))
        return scores


class Encoder(nn.Module):
    """A small Transformer over token ids, with a mask of those that are padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.places = nn.Parameter(torch.randn(1, 12, 16) / 4)
        self.norm, self.last = nn.LayerNorm(16), nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16))
        self.head = nn.Linear(16, 4)

    def forward(self, tokens: Tensor, weights: Tensor) -> Tensor:
        hidden = self.embedding(tokens) + self.places
        hidden = hidden * weights[..., None]
        normed = self.norm(hidden)
        hidden = hidden + self.attention(normed, normed, normed, need_weights=False)[0]
        hidden = hidden + self.mlp(self.last(hidden))
        scores: Tensor = self.head(hidden.mean(1))
        return scores


class Signal(nn.Module):
    """A one-dimensional signal (B, C, L)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(2, 24, 5, 2, 2),
            nn.BatchNorm1d(24),
            nn.ReLU(),
            nn.Conv1d(24, 32, 5, 2, 2),
            nn.BatchNorm1d(32),
            nn.ReLU(),
        )
        self.head = nn.Linear(32, 3)

    def forward(self, signal: Tensor) -> Tensor:
        scores: Tensor = self.head(self.body(signal).mean(2))
        return scores


class Volume(nn.Module):
    """A volume (B, C, D, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv3d(1, 16, 3, 1, 1), nn.BatchNorm3d(16), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(16, 24, 3), nn.ReLU()
        )
        self.head = nn.Linear(24, 3)

    def forward(self, volume: Tensor) -> Tensor:
        scores: Tensor = self.head(self.body(volume).mean((2, 3, 4)))
        return scores


class Pixels(nn.Module):
    """Images as they are in files: uint8, channels last; and which of them count."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(3, 16), _conv(16, 32, 2))
        self.head = nn.Linear(32, 4)

    def forward(self, *, pixels: Tensor, counts: Tensor) -> Tensor:
        images = pixels.permute(0, 3, 1, 2).float() / 255 - 0.5
        scores: Tensor = self.head(self.body(images).mean((2, 3))) * counts[:, None]
        return scores


def _seeded(kind: type[nn.Module]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = kind()
            for module in network.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                    module.running_mean.normal_()
            return network.eval()

    return build


def _tokens() -> Tensor:
    return torch.arange(24).reshape(2, 12) * 2 + 3  # 3 to 49, of 50


NETWORKS: dict[str, Given] = {
    "two images": Given(
        _seeded(Siamese), lambda: (torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8)), ("left", "right")
    ),
    "image and metadata": Given(
        _seeded(Film), lambda: (torch.zeros(1, 3, 8, 8), torch.zeros(1, 6)), ("image", "metadata")
    ),
    "a dict with a single number": Given(
        _seeded(Film),
        lambda: {"weight": torch.tensor(0.5), "metadata": torch.zeros(1, 6), "image": torch.zeros(1, 3, 8, 8)},
        ("weight", "metadata", "image"),
    ),
    "tokens": Given(_seeded(Text), _tokens, ("tokens",)),
    "tokens with weights": Given(_seeded(Encoder), lambda: (_tokens(), torch.rand(2, 12)), ("tokens", "weights")),
    "signal": Given(_seeded(Signal), lambda: torch.zeros(1, 2, 40), ("signal",)),
    "volume": Given(_seeded(Volume), lambda: torch.zeros(1, 1, 8, 8, 8), ("volume",)),
    "pixels and truth values": Given(
        _seeded(Pixels),
        lambda: {
            "pixels": torch.arange(2 * 8 * 8 * 3, dtype=torch.uint8).reshape(2, 8, 8, 3),
            "counts": torch.tensor([True, False]),
        },
        ("pixels", "counts"),
    ),
}
