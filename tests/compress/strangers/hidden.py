"""What one pass over random inputs does not show: experts that are not chosen, caches, noise, small shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

from .attention_heads import InputWidth, Tokens
from .attention_layers import Rotary
from .attention_maps import Around
from .registry import ConvBN, add, conv, pooled
from .styles import Plain


class Routed(nn.Module):
    """The strongest place of an image chooses its expert; most of them never run on two images."""

    def __init__(self, written: bool, count: int = 6, width: int = 32) -> None:
        super().__init__()
        self.written = written
        self.route = conv(width, 1, 1)
        self.experts = nn.ModuleList(nn.Sequential(conv(width, 20), nn.ReLU(), conv(20, width)) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        best, place = self.route(x).flatten(1).max(1)
        choice, out = place % len(self.experts), torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            chosen = choice == number
            if not chosen.any():
                continue
            if self.written:
                out[chosen] = expert(x[chosen]) * best[chosen, None, None, None]
            else:
                out = out + (chosen * best)[:, None, None, None] * expert(x)
        return out


class Exits(nn.Module):
    """A second part looks at dark images alone, which may not be among those that the network is tried with."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.first = ConvBN(3, 20, 3, 2), ConvBN(20, 32), nn.Linear(32, 5)
        self.more, self.last, self.second = ConvBN(20, 28), ConvBN(28, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        out = self.first(pooled(self.body(y)))
        dark = x.mean((1, 2, 3)) < -0.005
        if dark.any():
            out = out.clone()
            out[dark] = self.second(pooled(self.last(self.more(y[dark]))))
        return out


class Cached(nn.Module):
    """Sines of places and channels, made at the first call and kept in a plain attribute."""

    def __init__(self, buffer: bool) -> None:
        super().__init__()
        self.buffer, self.inner, self.out = buffer, conv(32, 40), conv(40, 32)
        self.cache: Tensor | None = None
        if buffer:
            self.register_buffer("table", torch.zeros(0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        known = self.table if self.buffer else self.cache
        if known is None or known.shape[1:] != y.shape[1:]:
            line = torch.arange(y[0].numel(), dtype=torch.float64).reshape(1, *y.shape[1:])
            known = torch.sin(line).to(y.dtype)
            if self.buffer:
                self.table = known
            else:
                self.cache = known
        return self.out(F.relu(y + known))


class Noisy(Plain):
    """Adds noise to the images, in evaluation too."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.1 * torch.randn_like(x))


class Small(nn.Module):
    """A branch with a small share of the sum, as layer scales start."""

    def __init__(self, inner: nn.Module, share: float = 2e-3) -> None:
        super().__init__()
        self.inner, self.share = inner, nn.Parameter(share * (0.5 + torch.rand(32)))

    def forward(self, x: Tensor) -> Tensor:
        return self.share * self.inner(x)


class Precise(Plain):
    """Runs in bfloat16 by autocast, or casts by hand where it is float32."""

    def __init__(self, auto: bool) -> None:
        super().__init__()
        self.auto = auto

    def forward(self, x: Tensor) -> Tensor:
        if self.auto:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=x.dtype == torch.float32):
                return super().forward(x).to(x.dtype)
        return self.fc(pooled(self.forward_features(x.float() if x.dtype != torch.float64 else x)).type_as(x))


class Exported(nn.Module):
    """Attention that asks for its sizes one way when it is traced or exported, and another way else."""

    def __init__(self, dim: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_tracing() or torch.compiler.is_exporting() or torch.compiler.is_compiling():
            B, N, C = x.shape[0], x.shape[1], x.shape[-1]
            qkv = self.qkv(x).reshape(B, N, 3, self.heads, C // self.heads)
            q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
        else:
            B, N, C = x.shape
            qkv = self.qkv(x).view(B, N, 3 * self.heads, -1).transpose(1, 2)
            q, k, v = torch.split(qkv, self.heads, dim=1)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(B, N, C))


class Symmetric(nn.Module):
    """A parametrisation of one's own."""

    def forward(self, weight: Tensor) -> Tensor:
        return torch.tanh(weight) + 0.1 * weight


class Wrapped(nn.Module):
    """Layers whose weight is computed: by torch's own pruning, by parametrisations, by a hook."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(32, 40), conv(40, 32), nn.Linear(32, 32)
        if kind == "masks":
            prune.l1_unstructured(self.a, "weight", 0.4)
            prune.random_unstructured(self.b, "weight", 0.3)
        elif kind == "own":
            parametrize.register_parametrization(self.a, "weight", Symmetric())
            parametrize.register_parametrization(self.b, "weight", Symmetric())
        elif kind == "orthogonal":
            parametrizations.orthogonal(self.c)
        else:
            self.b.register_forward_pre_hook(lambda module, inputs: (F.relu(inputs[0]) * 0.5,))

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(F.relu(self.a(x)))
        return self.c(y.movedim(1, -1)).movedim(-1, 1)


class Rounding(torch.autograd.Function):
    """Rounds to eighths; the gradient passes."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return torch.round(x * 8) / 8

    @staticmethod
    def backward(context: Any, *gradients: Any) -> Any:
        return gradients[0]


class Quantised(nn.Module):
    """Weights and activations rounded in the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(32, 40), conv(40, 32)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(Rounding.apply(self.a(x)))
        return F.conv2d(y, Rounding.apply(self.b.weight), self.b.bias, padding=1)


class Sampled(Plain):
    """A variational code: its mean in evaluation, with a spread that only training reads."""

    def __init__(self) -> None:
        super().__init__()
        self.code, self.out = nn.Linear(24, 2 * 20), nn.Linear(20, 28)
        self.fc = nn.Linear(28, 5)

    def forward(self, x: Tensor) -> Any:
        mean, spread = self.code(pooled(self.forward_features(x))).chunk(2, dim=1)
        code = mean + torch.randn_like(mean) * (0.5 * spread).exp() if self.training else mean
        return self.fc(F.relu(self.out(code)))


INNER, FIXED, EDGE = "stem.0 body.0", "last.0 fc", "stem.0 before.0"
STREAM = {"scope": "channels"}
BLOCKS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a cache of sines": (lambda: Cached(False), EDGE),
    "a buffer that is filled at the first call": (lambda: Cached(True), EDGE),
    "weights with masks of torch's pruning": (lambda: Wrapped("masks"), f"{EDGE} block.a"),
    "weights with a parametrisation of one's own": (lambda: Wrapped("own"), f"{EDGE} block.a block.b"),
    "orthogonal weights": (lambda: Wrapped("orthogonal"), f"{EDGE} block.a block.b"),
    "a hook before a layer": (lambda: Wrapped("hook"), f"{EDGE} block.a block.b"),
    "rounded weights": (Quantised, EDGE),
}
for written in (True, False):
    name = f"experts that are chosen and {'written' if written else 'added'}"
    add(name, lambda written=written: Around(Routed(written)), prunes="stem.0", keeps="after.0 head", batch=16,
        options=STREAM, by_values=True)  # fmt: skip
add("a part for dark images", Exits, keeps="body.0 first", or_notes="more.0", batch=16, by_values=True)
for name, (block, prunes) in BLOCKS.items():
    add(name, lambda block=block: Around(block()), prunes=prunes, keeps="after.0 head")
add("noise in the images", Noisy, prunes=INNER, keeps=FIXED)
add("a rotation behind a small share", lambda: Tokens(Small(Rotary())), prunes="fc1", keeps="neck head")
add("attention behind a small share", lambda: Tokens(Small(InputWidth())), prunes="fc1 attn.inner.qkv",
    keeps="neck head", options=STREAM)  # fmt: skip
add("another precision by autocast", lambda: Precise(True), prunes=INNER, keeps=FIXED)
add("another precision by hand", lambda: Precise(False), prunes=INNER, keeps=FIXED)
add("other sizes when exported", lambda: Tokens(Exported()), prunes="fc1", keeps="neck head", onnx=True)
add("a code with a spread", Sampled, prunes=f"{INNER} last.0", keeps="out fc")
