"""How people write forwards: arguments of every kind, flags, hooks, checkpoints, layers that nobody reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from .outputs import Prediction
from .registry import ConvBN, add, conv, pooled

__all__ = ["Plain"]

INNER, FIXED = "stem.0 body.0", "last.0 fc"


class Plain(nn.Module):
    """What the others change: three convolutions and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.last = ConvBN(3, 16, 3, 2), ConvBN(16, 32), ConvBN(32, 24)
        self.fc = nn.Linear(24, 5)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.last(self.body(self.stem(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = pooled(x)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Any:
        return self.forward_head(self.forward_features(x))


class Positional(Plain):
    def forward(self, *args: Tensor) -> Tensor:
        return super().forward(args[0])


class Keywords(Plain):
    def forward(self, *args: Any, is_training: bool = False, **kwargs: Any) -> Any:
        features = self.forward_features(*args, **kwargs)
        return {"features": features} if is_training else self.forward_head(features)


class Flags(Plain):
    def forward(self, x: Tensor, return_features: bool = False, scale: float = 1.0, mask: Tensor | None = None) -> Any:
        y = self.forward_features(x)
        if mask is not None:
            y = y * mask
        out = self.fc(F.dropout(pooled(y), 0.5, training=self.training)) * scale
        return (out, y) if return_features else out


class Unused(Plain):
    """Layers that nobody calls, a parameter nobody reads, a layer whose result is thrown away."""

    def __init__(self) -> None:
        super().__init__()
        self.old, self.extra, self.side = ConvBN(16, 40), nn.Parameter(torch.randn(32)), conv(32, 20)
        self.deep_side = nn.Sequential(conv(16, 20), conv(20, 12))
        self.register_buffer("steps", torch.zeros(32))

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        self.deep_side(y)
        y = self.body(y)
        self.side(y)
        return self.fc(pooled(self.last(y)))


class Auxiliary(Plain):
    """An auxiliary head that is called and left out in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Sequential(conv(32, 20), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 5))

    def forward(self, x: Tensor) -> Any:
        y = self.body(self.stem(x))
        aux = self.aux(y)
        out = self.fc(pooled(self.last(y)))
        return (out, aux) if self.training else out


class Checkpointed(Plain):
    """Parts that are computed anew in training."""

    def __init__(self) -> None:
        super().__init__()
        self.more = nn.Sequential(ConvBN(32, 28), ConvBN(28, 32))

    def forward(self, x: Tensor) -> Tensor:
        y = checkpoint(self.body, self.stem(x), use_reentrant=False)
        return self.fc(pooled(self.last(checkpoint_sequential(self.more, 2, y, use_reentrant=False))))


class Hooked(Plain):
    """A hook that scales, one that remembers, and an attribute that is set by the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []
        self.body.register_forward_hook(lambda module, inputs, output: output * 0.5)
        self.stem.register_forward_pre_hook(lambda module, inputs: (inputs[0] - 0.1,))

    def forward(self, x: Tensor) -> Tensor:
        self.last_shape = x.shape
        return super().forward(x)


class Single(Plain):
    """Takes one image at a time: it squeezes the batch away."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] != 1:
            raise ValueError(f"expected one image, got {x.shape[0]}")
        y = self.forward_features(x).squeeze(0)
        return self.fc(y.flatten(1).mean(1)).unsqueeze(0)


class Silent(Plain):
    """Its layers run, and what it returns has nothing of them: their way is lost in numpy, or leads nowhere."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if self.kind == "numpy":
            return torch.from_numpy(y.detach().numpy().copy())
        if self.kind == "number":
            return y / (1 + y.abs().max().item())
        return x.mean((2, 3))


class Returns(Plain):
    """What leaves is a dataclass, or a tuple with None and a number."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Any:
        out = super().forward(x)
        return (
            Prediction(logits=out, hidden=(out.exp(),)) if self.kind == "dataclass" else (out, None, 0.5, out.argmax(1))
        )


PLAIN: dict[str, Callable[[], nn.Module]] = {
    "a forward of positional arguments": Positional,
    "a forward of keyword arguments": Keywords,
    "a forward with flags": Flags,
    "layers that nobody reads": Unused,
    "an auxiliary head that is left out": Auxiliary,
    "parts computed anew": Checkpointed,
    "hooks that change outputs": Hooked,
    "weights in channels last": lambda: Plain().to(memory_format=torch.channels_last),
    "frozen weights": lambda: Plain().requires_grad_(False),
    "outputs in a dataclass": lambda: Returns("dataclass"),
    "outputs with None and a number": lambda: Returns("tuple"),
    "a network inside a wrapper": lambda: nn.Sequential(Plain()),
}
EXPORTED = (
    "a forward of positional arguments",
    "a forward of keyword arguments",
    "layers that nobody reads",
    "outputs in a dataclass",
    "outputs with None and a number",
)
for name, factory in PLAIN.items():
    inside = "0." if name.endswith("wrapper") else ""
    add(name, factory, prunes=" ".join(f"{inside}{layer}" for layer in INNER.split()),
        keeps=" ".join(f"{inside}{layer}" for layer in FIXED.split()), onnx=name in EXPORTED)  # fmt: skip
add("one image at a time", Single, prunes=INNER, keeps=FIXED, batch=1)
add("outputs that went through numpy", lambda: Silent("numpy"), keeps=FIXED, may_refuse="output")
add("layers that reach no output", lambda: Silent("nothing"), may_refuse="output")
add("a scale that is a number", lambda: Silent("number"), prunes=INNER, keeps=FIXED)
