"""Weights that are used more than once: transposed, in a loop, in two towers, under two names."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention_maps import Around
from .registry import ConvBN, add, conv, pooled


class TiedLinear(nn.Module):
    """An autoencoder of pooled features whose decoder is the encoder's weight transposed."""

    def __init__(self, deep: bool) -> None:
        super().__init__()
        self.stem, self.body = ConvBN(3, 20, 3, 2), ConvBN(20, 28)
        self.encode, self.code = nn.Linear(28, 40), nn.Linear(40, 12) if deep else None
        self.bias, self.mid = nn.Parameter(torch.randn(28)), nn.Parameter(torch.randn(40))
        self.head = nn.Linear(28, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = pooled(self.body(self.stem(x)))
        y = torch.tanh(self.encode(features))
        if self.code is not None:
            y = torch.tanh(F.linear(torch.tanh(self.code(y)), self.code.weight.t(), self.mid))
        return self.head(F.linear(y, self.encode.weight.t(), self.bias))


class TiedConv(nn.Module):
    """The same with convolutions: the decoder calls ``conv_transpose2d`` with the encoder's weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.enc, self.deep = ConvBN(3, 20), conv(20, 32, stride=2), conv(32, 24)
        self.shift, self.last, self.head = nn.Parameter(torch.randn(20)), ConvBN(20, 24), nn.Conv2d(24, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.deep(F.relu(self.enc(self.first(x)))))
        y = F.conv_transpose2d(y, self.deep.weight, padding=1)
        y = F.conv_transpose2d(F.relu(y), self.enc.weight, self.shift, stride=2, padding=1, output_padding=1)
        return self.head(self.last(y))


class Names(nn.Module):
    """One parameter under two names, in layers that other layers are between."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(32, 32), conv(32, 32), ConvBN(32, 40)
        self.out = conv(40, 32)
        if whole:
            self.b = self.a
        else:
            self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.c(F.relu(self.b(F.relu(self.a(x))))))


class Towers(nn.Module):
    """Two halves of the image through one tower, compared by their difference and product."""

    def __init__(self, cosine: bool) -> None:
        super().__init__()
        self.cosine = cosine
        self.tower = nn.Sequential(
            ConvBN(3, 20, 3, 2), ConvBN(20, 28), ConvBN(28, 24), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.merge, self.head = nn.Linear(48, 20), nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        one, other = (self.tower(half) for half in x.chunk(2, dim=-1))
        if self.cosine:
            return F.cosine_similarity(one, other, dim=1)
        return self.head(F.relu(self.merge(torch.cat([(one - other).abs(), one * other], dim=1))))


class Loop(nn.Module):
    """A block that is called again and again on its own state, with the input added each time."""

    def __init__(self, steps: int = 3) -> None:
        super().__init__()
        self.steps, self.inject = steps, conv(32, 24)
        self.a, self.b, self.norm = conv(24, 40), conv(40, 24), nn.GroupNorm(4, 24)
        self.out = conv(24, 32)

    def forward(self, x: Tensor) -> Tensor:
        u = self.inject(x)
        z = torch.zeros_like(u)
        for _ in range(self.steps):
            z = F.relu(self.norm(z + self.b(F.relu(self.a(z + u)))))
        return self.out(z)


class Cell(nn.Module):
    """A convolutional GRU over the rows of a map; its state is made new with the width that an attribute says."""

    def __init__(self, inputs: int = 32, hidden: int = 24) -> None:
        super().__init__()
        self.hidden = hidden
        self.gates, self.candidate = conv(inputs + hidden, 2 * hidden), conv(inputs + hidden, hidden)
        self.out = conv(hidden, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.size(0), self.hidden, x.size(2) // 2, x.size(3), device=x.device, dtype=x.dtype)
        for part in x.chunk(2, dim=2):
            update, reset = torch.split(self.gates(torch.cat([part, h], 1)).sigmoid(), self.hidden, dim=1)
            h = (1 - update) * h + update * torch.tanh(self.candidate(torch.cat([part, reset * h], 1)))
        return self.out(h)


class Levels(nn.Module):
    """One tower for maps of three sizes, each with norms of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.ModuleList([conv(32, 24, bias=False), conv(24, 28, bias=False)])
        self.norms = nn.ModuleList(nn.ModuleList([nn.BatchNorm2d(24), nn.BatchNorm2d(28)]) for _ in range(3))
        self.out = conv(28, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        sizes = [x, F.avg_pool2d(x, 2), F.max_pool2d(x, 4)]
        ups = []
        for y, norms in zip(sizes, self.norms, strict=True):
            for layer, norm in zip(self.tower, norms, strict=True):
                y = F.relu(norm(layer(y)))
            ups.append(F.interpolate(y, x.shape[-2:]))
        return self.out(ups[0] + ups[1] + ups[2])


class Shared(nn.Module):
    """The classifier's weight is the table of embeddings of classes, which are also queried."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.last = ConvBN(3, 20, 3, 2), ConvBN(20, 32), conv(32, 24)
        self.table = nn.Embedding(6, 24)

    def forward(self, x: Tensor) -> Tensor:
        y = self.last(self.body(self.stem(x))).flatten(2).mT
        best = (y @ self.table.weight.T).softmax(-1) @ self.table.weight
        return F.linear((y + best).mean(1), self.table.weight)


EDGE, B = "stem.0 before.0", "block."
INNER = "stem.0 body.0"
add("a decoder that is the encoder transposed", lambda: TiedLinear(False), prunes="stem.0 encode", keeps="head")
add("a deep decoder that is the encoder transposed", lambda: TiedLinear(True), prunes="stem.0", keeps="head")
add("transposed convolutions with the weights of an encoder", TiedConv, prunes="first.0", keeps="last.0 head")
add("one weight under two names", lambda: Around(Names(False)), prunes=f"{EDGE} {B}c.0 {B}out", keeps="after.0 head")
add("one layer under two names", lambda: Around(Names(True)), prunes=f"stem.0 {B}a {B}c.0 {B}out", keeps="after.0 head")
add(
    "two towers that are one",
    lambda: Towers(False),
    prunes="tower.0.0 tower.1.0 tower.2.0",
    keeps="merge head",
    onnx=True,
)
add("two towers compared by cosine", lambda: Towers(True), prunes="tower.0.0", keeps="tower.2.0")
add("a block in a loop", lambda: Around(Loop()), prunes=f"{EDGE} {B}a {B}b {B}inject {B}out", keeps="after.0 head",
    options={"scope": "channels"})  # fmt: skip
add("a recurrent cell", lambda: Around(Cell()), prunes=f"{EDGE} {B}out", keeps="after.0 head")
add("a tower for three sizes", lambda: Around(Levels()), prunes=f"{EDGE} {B}tower.0 {B}out", keeps="after.0 head")
add("a table that is also the classifier", Shared, prunes=f"{INNER}", keeps="last table")
