"""Train the embedded network on scikit-learn's digits: ``python models/digits/train.py``.

Seeded and on one thread, so that the same versions give the same weights. A quarter of the 1797 images,
drawn once with seed 0, is never trained on; ``write_images`` lays it out as an image folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from pruneport.models.digits.network import WEIGHTS, DigitsResNet, digits_resnet

__all__ = ["accuracy", "split", "train", "write_images"]


def split() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return train inputs (B, 1, 8, 8), train labels (B,), test inputs and test labels."""
    digits = load_digits()
    # 16 grey levels become multiples of 15, so that a PNG holds exactly the pixels trained on.
    pixels = (digits.images * 15).astype(np.float32)[:, None] / 255
    inputs = torch.from_numpy((pixels - 0.5) / 0.5)
    labels = torch.from_numpy(digits.target).long()
    train_rows, test_rows = train_test_split(
        np.arange(len(labels)), test_size=0.25, stratify=digits.target, random_state=0
    )
    return inputs[train_rows], labels[train_rows], inputs[test_rows], labels[test_rows]


def train(epochs: int = 40, batch: int = 64, seed: int = 0) -> DigitsResNet:
    """Train with SGD and a one-cycle schedule; images are shifted by up to one pixel."""
    torch.manual_seed(seed)
    inputs, labels, _, _ = split()
    network = digits_resnet().train()
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = -(-len(labels) // batch) * epochs
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=0.1, total_steps=steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(labels)).chunk(-(-len(labels) // batch)):
            shift = [int(pixels) for pixels in torch.randint(-1, 2, (2,))]
            shifted = inputs[rows].roll(shift, dims=(2, 3))
            loss = nn.functional.cross_entropy(network(shifted), labels[rows], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    return network.eval()


@torch.inference_mode()
def accuracy(network: nn.Module) -> float:
    """Top-1 on the held-out quarter."""
    _, _, inputs, labels = split()
    return float((network(inputs).argmax(1) == labels).float().mean())


def write_images(folder: Path, *, trained_on: bool = False) -> Path:
    """Write the held-out quarter, or the images trained on, as ``folder/DIGIT/NUMBER.png``."""
    train_inputs, train_labels, test_inputs, test_labels = split()
    inputs, labels = (train_inputs, train_labels) if trained_on else (test_inputs, test_labels)
    for number, (image, label) in enumerate(zip(inputs, labels, strict=True)):
        target = folder / str(int(label)) / f"{number:04d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        pixels = ((image[0] * 0.5 + 0.5) * 255).round().to(torch.uint8).numpy()
        Image.fromarray(pixels).save(target)
    return folder


def main() -> None:
    """Train and write the weights."""
    parser = argparse.ArgumentParser(description="Train the embedded digits network.")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="where the .safetensors file goes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    network = train()
    save_file(network.state_dict(), arguments.out)
    print(f"{arguments.out}: top-1 {accuracy(network):.4f} on the held-out quarter")


if __name__ == "__main__":
    main()
