"""Small tasks made of scikit-learn's digits, for studies that download nothing (extra ``demo``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from PIL import Image
from torch import Tensor

__all__ = ["DIGITS_TASKS", "write_digits_task"]

# pixels (1, 8, 8) in [0, 1] and digit -> pixels and class
DIGITS_TASKS: Mapping[str, Callable[[Tensor, int], tuple[Tensor, str]]] = MappingProxyType(
    {
        "parity": lambda pixels, digit: (pixels, "odd" if digit % 2 else "even"),
        "mirrored": lambda pixels, digit: (pixels.flip(2), str(digit)),
        "inverted": lambda pixels, digit: (1 - pixels, str(digit)),
    }
)


def write_digits_task(name: str, folder: Path) -> None:
    """Write ``train/CLASS/NUMBER.png`` and ``test/CLASS/NUMBER.png``, split as the embedded network's data is."""
    from pruneport.models.digits.train import split

    train_inputs, train_labels, test_inputs, test_labels = split()
    for part, inputs, labels in (("train", train_inputs, train_labels), ("test", test_inputs, test_labels)):
        for number, (image, label) in enumerate(zip(inputs, labels, strict=True)):
            pixels, kind = DIGITS_TASKS[name](image * 0.5 + 0.5, int(label))
            target = folder / part / kind / f"{number:04d}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((pixels[0] * 255).round().byte().numpy()).save(target)
