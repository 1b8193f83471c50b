"""Detectors in steps: boxes are filtered, suppressed, cut out of a map again, or given masks."""

from __future__ import annotations

from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from .detection import INNER, SHAPE, Levels, Ssd
from .registry import ConvBN, add, conv


class Filtered(Ssd):
    """Boxes over a threshold alone, by mask or by torchvision's suppression; their number follows from the values."""

    def __init__(self, suppress: bool) -> None:
        super().__init__()
        self.suppress = suppress

    def forward(self, x: Tensor) -> Any:
        scores, boxes = super().forward(x)
        best, label = scores[..., 1:].max(-1)
        results = []
        for box, score, kind in zip(boxes, best, label, strict=True):
            keep = torchvision.ops.nms(box, score, 0.5)[:7] if self.suppress else torch.nonzero(score > 0.25).squeeze(1)
            results.append({"boxes": box[keep], "scores": score[keep], "labels": kind[keep] + 1})
        return results


class Regions(Levels):
    """Two stages: boxes of the first are cut out by torchvision's ``roi_align`` for two linear layers."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.rpn, self.objectness, self.deltas = ConvBN(32, 24), conv(24, 1, 1), conv(24, 4, 1)
        self.fc6, self.fc7 = nn.Linear(32 * 9, 48), nn.Linear(48, 32)
        self.score, self.box = nn.Linear(32, classes), nn.Linear(32, classes * 4)

    def forward(self, x: Tensor) -> Any:
        y = self.levels(x)[0]
        t = self.rpn(y)
        places = self.objectness(t).flatten(1).topk(4).indices
        delta = self.deltas(t).flatten(2).gather(2, places[:, None].expand(-1, 4, -1)).permute(0, 2, 1)
        start = torch.stack([places % 8, places // 8], -1) + delta[..., :2].sigmoid()
        rois = torch.cat([start, start + 2 + delta[..., 2:].sigmoid()], -1).flatten(0, 1)
        batch = torch.arange(len(x)).repeat_interleave(4)[:, None].to(rois.dtype)
        cut = torchvision.ops.roi_align(y, torch.cat([batch, rois], 1), output_size=3, sampling_ratio=1)
        z = F.relu(self.fc7(F.relu(self.fc6(cut.flatten(start_dim=1)))))
        deltas = self.box(z).reshape(len(z), -1, 4)
        labels = self.score(z).softmax(-1)[:, 1:].argmax(1)
        return deltas[torch.arange(len(z)), labels + 1], labels


class Masks(Levels):
    """Coefficients of boxes times prototypes of masks."""

    def __init__(self) -> None:
        super().__init__()
        self.proto = nn.Sequential(ConvBN(32, 24), ConvBN(24, 24), conv(24, 6, 1))
        self.coefficients, self.score = conv(32, 6, 1), conv(32, 5, 1)

    def forward(self, x: Tensor) -> Any:
        y = self.levels(x)[0]
        scores, places = self.score(y).flatten(2).amax(1).topk(3)
        chosen = self.coefficients(y).flatten(2).gather(2, places[:, None].expand(-1, 6, -1)).tanh()
        return torch.einsum("bkn,bkhw->bnhw", chosen, self.proto(y)).sigmoid(), scores


HEADS = "smooth.0.0 smooth.1.0"
add(
    "boxes over a threshold", lambda: Filtered(False), SHAPE, prunes=INNER, keeps=f"{HEADS} cls.0 reg.0", by_values=True
)
add(
    "boxes after suppression", lambda: Filtered(True), SHAPE, prunes=INNER, keeps=f"{HEADS} cls.0 reg.0", by_values=True
)
add("boxes of two stages", Regions, SHAPE, prunes="stem.0 body.0 neck.0.0 fc6", keeps="fc7 score box objectness deltas")
add("masks of prototypes", Masks, SHAPE, prunes="stem.0 body.0 neck.0.0 proto.0.0", keeps="coefficients score proto.2")
