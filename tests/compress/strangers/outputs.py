"""What leaves a classifier: labels, ranks, masks, groups of logits, embeddings. Its classes must all stay."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .registry import ConvBN, add, pooled

__all__ = ["Classifier"]

INNER, FIXED = "stem.0 body.0", "last.0 fc"


class Classifier(nn.Module):
    """Three convolutions and a linear layer; ``finish`` makes the output of its logits (B, ``classes``)."""

    def __init__(self, finish: Callable[..., Any], classes: int = 8) -> None:
        super().__init__()
        self.stem, self.body, self.last = ConvBN(3, 16, 3, 2), ConvBN(16, 32), ConvBN(32, 24)
        self.fc, self.finish = nn.Linear(24, classes), finish
        self.register_buffer("order", torch.randperm(classes))
        self.register_buffer("confusion", torch.rand(classes, 5))
        self.register_buffer("prior", torch.rand(classes))

    def features(self, x: Tensor) -> Tensor:
        return pooled(self.last(self.body(self.stem(x))))

    def forward(self, x: Tensor) -> Any:
        return self.finish(self, self.fc(self.features(x)))


@dataclass
class Prediction:
    """As the outputs of large libraries."""

    logits: Tensor
    loss: Tensor | None = None
    hidden: tuple[Tensor, ...] = ()


Pair = namedtuple("Pair", "label score")


def masked(n: Any, y: Tensor) -> Tensor:
    best = y.topk(3).indices
    return torch.full_like(y, -torch.inf).scatter(1, best, y.gather(1, best))


def weighed(n: Any, y: Tensor) -> Tensor:
    places = torch.arange(y.shape[1], dtype=y.dtype)
    return (y.softmax(1) * places).sum(1)


def coarse_and_fine(n: Any, y: Tensor) -> dict[str, Tensor]:
    coarse, fine = y[:, :2], y[:, 2:].reshape(len(y), 2, 3)
    group = coarse.argmax(1)
    return {"coarse": group, "fine": fine[torch.arange(len(y)), group].softmax(1)}


FINISHES: dict[str, Callable[[Any, Tensor], Any]] = {
    "logits and labels": lambda n, y: {"logits": y, "labels": y.argmax(dim=-1)},
    "argmax": lambda n, y: y.argmax(1),
    "argmax of a softmax": lambda n, y: torch.argmax(F.softmax(y, dim=1), dim=1, keepdim=True),
    "max": lambda n, y: tuple(y.max(1)),
    "a named pair": lambda n, y: Pair(*y.softmax(-1).max(-1)[::-1]),
    "topk": lambda n, y: y.topk(3),
    "scores of topk": lambda n, y: y.softmax(1).topk(3)[0],
    "sort": lambda n, y: list(torch.sort(y, dim=1, descending=True)),
    "argsort": lambda n, y: y.argsort(-1),
    "one-hot": lambda n, y: F.one_hot(y.argmax(1), y.shape[1]),
    "softmax": lambda n, y: y.softmax(1),
    "log-softmax": lambda n, y: F.log_softmax(y, dim=-1),
    "labels over a threshold": lambda n, y: (y.sigmoid() > 0.5).int(),
    "a sign": lambda n, y: torch.sign(y),
    "groups of classes": lambda n, y: y.view(len(y), 2, -1).softmax(-1).flatten(1),
    "another order": lambda n, y: y[:, n.order],
    "merged classes": lambda n, y: y.softmax(1) @ n.confusion,
    "a prior": lambda n, y: y + n.prior.log(),
    "the best alone": masked,
    "an expected rank": weighed,
    "a cumulative sum": lambda n, y: y.softmax(1).cumsum(1),
    "coarse and fine classes": coarse_and_fine,
    "an uncertainty": lambda n, y: (y[:, :4], y[:, 4:].exp()),
    "two parts of chunk": lambda n, y: dict(zip(("mean", "variance"), y.chunk(2, dim=1), strict=True)),
    "an entropy": lambda n, y: -(y.softmax(1) * y.log_softmax(1)).sum(1),
    "a score that is a number": lambda n, y: {"logits": y, "classes": 8, "threshold": 0.5, "boxes": None},
    "a dataclass": lambda n, y: Prediction(logits=y),
    "nested lists": lambda n, y: [y, [y[:, :1], (y[:, 1:],)]],
    "an ordered dictionary": lambda n, y: OrderedDict(out=y, probabilities=y.softmax(1)),
    "distances of logits": lambda n, y: torch.cdist(y, y.flip(1)),
    "a heat map": lambda n, y: F.interpolate(y.view(-1, 2, 2, 2), scale_factor=4, mode="bilinear"),
    "pairs of classes": lambda n, y: torch.stack([y[:, ::2], y[:, 1::2]], -1),
    "counts": lambda n, y: F.one_hot(y.topk(2)[1], 8).sum(1),
    "a median": lambda n, y: y.median(1)[0],
    "a kth value": lambda n, y: torch.kthvalue(y, 2, dim=1).values,
    "the best by a mask": lambda n, y: torch.where(y == y.amax(1, keepdim=True), y, torch.zeros_like(y)),
    "logits in half precision": lambda n, y: y.to(torch.bfloat16).float() if y.dtype == torch.float32 else y,
}
EXPORTED = ("logits and labels", "topk", "one-hot", "a score that is a number", "a dataclass", "sort")
for name, finish in FINISHES.items():
    add(f"a classifier that returns {name}", lambda finish=finish: Classifier(finish), prunes=INNER, keeps=FIXED,
        onnx=name in EXPORTED)  # fmt: skip


class Embedding(Classifier):
    """No classes: features go out, as they are or normalised, or are compared with prototypes."""

    def __init__(self, kind: str) -> None:
        super().__init__(lambda n, y: y)
        self.kind, self.prototypes = kind, nn.Parameter(torch.randn(6, 8))
        self.drop = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Any:
        features = self.features(x)
        y = self.fc(self.drop(features))
        if self.kind == "cosine":
            return 16 * F.linear(F.normalize(y), F.normalize(self.prototypes))
        if self.kind == "distances":
            return -torch.cdist(y, self.prototypes)
        if self.kind == "features":
            return y, features
        if self.kind == "maps":
            return {"logits": y, "maps": [self.stem(x), self.body(self.stem(x))]}
        return F.normalize(y, p=2, dim=1)


add("a normalised embedding", lambda: Embedding("normalised"), prunes=INNER, keeps=FIXED, onnx=True)
add("a cosine classifier", lambda: Embedding("cosine"), prunes=INNER, keeps="fc prototypes")
add("distances to prototypes", lambda: Embedding("distances"), prunes=INNER, keeps="fc prototypes")
add("features that go out beside logits", lambda: Embedding("features"), prunes=INNER, keeps=FIXED)
add("inner maps that go out", lambda: Embedding("maps"), refuses="nothing can be pruned")


class Branches(nn.Module):
    """Several heads of one trunk: an auxiliary one, one of pixels, one of places, and their mean."""

    def __init__(self, together: str) -> None:
        super().__init__()
        self.together = together
        self.stem, self.mid, self.deep = ConvBN(3, 24, 3, 2), ConvBN(24, 32), ConvBN(32, 40)
        self.last = ConvBN(40, 24)
        self.aux = nn.Sequential(ConvBN(32, 20), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 6))
        self.heads = nn.ModuleList([nn.Linear(24, 6), nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 6))])
        self.pixels = nn.Conv2d(24, 6, 1)

    def forward(self, x: Tensor) -> Any:
        mid = self.mid(self.stem(x))
        last = self.last(self.deep(mid))
        outputs = [self.aux(mid), *(head(pooled(last)) for head in self.heads)]
        if self.together == "mean":
            return torch.stack(outputs, dim=0).softmax(-1).mean(dim=0)
        if self.together == "pixels":
            pixels = F.interpolate(self.pixels(last), size=x.shape[-2:], mode="bilinear", align_corners=False)
            return {"out": pixels, "labels": pixels.argmax(1), "aux": outputs[0]}
        if self.together == "peaks":
            heat = self.pixels(last)
            weights = heat.flatten(2).softmax(-1).unflatten(2, heat.shape[2:])
            rows, columns = torch.arange(8, dtype=x.dtype), torch.arange(8, dtype=x.dtype)
            return torch.stack([(weights.sum(2) * columns).sum(-1), (weights.sum(3) * rows).sum(-1)], dim=-1)
        return outputs


add("several heads", lambda: Branches("list"), prunes="stem.0 deep.0",
    keeps="last.0 aux.0.0 aux.3 heads.0 heads.1.2", onnx=True)  # fmt: skip
add("an ensemble of heads", lambda: Branches("mean"), prunes="stem.0 deep.0", keeps="aux.3 heads.0 heads.1.2")
add("labels of pixels", lambda: Branches("pixels"), prunes="stem.0 deep.0", keeps="last.0 pixels aux.3")
add("the mean places of peaks", lambda: Branches("peaks"), prunes="stem.0 deep.0", keeps="last.0 pixels")
