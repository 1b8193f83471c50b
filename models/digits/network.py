"""The embedded network: a small residual network for scikit-learn's 8 x 8 digits.

Trained by ``models/digits/train.py``; the weights lie beside this file.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

__all__ = ["WEIGHTS", "DigitsResNet", "digits_resnet"]

WEIGHTS = Path(__file__).parent / "digits_resnet.safetensors"


class _Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut, projected where the shape changes (He et al., 2015)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        out: Tensor = self.relu(y + self.shortcut(x))
        return out


class DigitsResNet(nn.Module):
    """Inputs (B, 1, 8, 8) with pixels in [0, 1], normalised to mean 0.5 and std 0.5; 10 logits."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.blocks = nn.Sequential(_Block(32, 32, 1), _Block(32, 64, 2), _Block(64, 64, 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, 10) of images (B, 1, 8, 8)."""
        out: Tensor = self.head(self.pool(self.blocks(self.stem(x))).flatten(1))
        return out


def digits_resnet(num_classes: int = 10) -> DigitsResNet:
    """Build the network with fresh weights."""
    return DigitsResNet(num_classes)
