"""Detectors: what their heads return is permuted, decoded, joined over levels, gathered, filtered; it all must stay."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .registry import ConvBN, add, conv, parameter

__all__ = ["INNER", "SHAPE", "Levels", "Ssd"]

SHAPE = (3, 32, 32)
INNER = "stem.0 body.0 neck.0.0 neck.1.0"


class Levels(nn.Module):
    """A trunk with two levels, 8 x 8 and 4 x 4, of 32 channels each behind a neck."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.deep = ConvBN(3, 16, 3, 2), ConvBN(16, 24, 3, 2), ConvBN(24, 40, 3, 2)
        self.neck = nn.ModuleList([ConvBN(24, 28), ConvBN(40, 28)])
        self.smooth = nn.ModuleList([ConvBN(28, 32), ConvBN(28, 32)])

    def levels(self, x: Tensor) -> list[Tensor]:
        low = self.body(self.stem(x))
        return [self.smooth[i](self.neck[i](y)) for i, y in enumerate((low, self.deep(low)))]


class Ssd(Levels):
    """A class and a box convolution for each level, permuted, flattened and decoded against anchors."""

    def __init__(self, classes: int = 5, anchors: int = 3, decode: bool = True) -> None:
        super().__init__()
        self.classes, self.decode = classes, decode
        self.cls = nn.ModuleList(conv(32, anchors * classes) for _ in range(2))
        self.reg = nn.ModuleList(conv(32, anchors * 4) for _ in range(2))
        self.register_buffer("anchors", torch.rand((64 + 16) * anchors, 4) + 0.5)

    def forward(self, x: Tensor) -> Any:
        logits, boxes = [], []
        for y, cls, reg in zip(self.levels(x), self.cls, self.reg, strict=True):
            logits.append(cls(y).permute(0, 2, 3, 1).reshape(y.shape[0], -1, self.classes))
            boxes.append(reg(y).permute(0, 2, 3, 1).contiguous().view(y.size(0), -1, 4))
        scores, boxes = torch.cat(logits, 1), torch.cat(boxes, dim=1)
        if not self.decode:
            return {"cls_logits": scores, "bbox_regression": boxes}
        centres = self.anchors[:, :2] + 0.1 * boxes[..., :2] * self.anchors[:, 2:]
        sizes = self.anchors[:, 2:] * torch.exp(0.2 * boxes[..., 2:])
        return scores.softmax(-1), torch.cat([centres - sizes / 2, centres + sizes / 2], dim=-1)


class Retina(Levels):
    """One head for all levels; anchors are a dimension of a view; the best are taken by topk and gather."""

    def __init__(self, classes: int = 5, anchors: int = 3, best: int = 0) -> None:
        super().__init__()
        self.classes, self.best = classes, best
        self.tower_c, self.tower_r = ConvBN(32, 24), ConvBN(32, 24)
        self.mid_c, self.mid_r = ConvBN(24, 24), ConvBN(24, 24)
        self.cls, self.reg = conv(24, anchors * classes), conv(24, anchors * 4)

    def flat(self, y: Tensor, size: int) -> Tensor:
        n, _, h, w = y.shape
        return y.view(n, -1, size, h, w).permute(0, 3, 4, 1, 2).reshape(n, -1, size)

    def forward(self, x: Tensor) -> Any:
        levels = self.levels(x)
        scores = torch.cat([self.flat(self.cls(self.mid_c(self.tower_c(y))), self.classes) for y in levels], 1)
        boxes = torch.cat([self.flat(self.reg(self.mid_r(self.tower_r(y))), 4) for y in levels], dim=1)
        if not self.best:
            return {"scores": scores.sigmoid(), "boxes": boxes}
        values, places = scores.sigmoid().flatten(1).topk(self.best, dim=1)
        chosen = torch.div(places, self.classes, rounding_mode="floor")
        boxes = boxes.gather(1, chosen.unsqueeze(-1).expand(-1, -1, 4))
        return {"boxes": boxes, "scores": values, "labels": places % self.classes}


class Fcos(Levels):
    """Distances to four sides by exp of a learned scale, scores times centredness."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.tower = ConvBN(32, 24)
        self.cls, self.reg, self.ctr = conv(24, classes), conv(24, 4), conv(24, 1)
        self.scales = nn.ParameterList(parameter(1) for _ in range(2))

    def forward(self, x: Tensor) -> Any:
        outputs = []
        for y, scale, stride in zip(self.levels(x), self.scales, (4, 8), strict=True):
            y = self.tower(y)
            side = torch.exp(scale * self.reg(y)).flatten(2).transpose(1, 2) * stride
            places = (torch.arange(y.shape[-1], dtype=x.dtype) + 0.5) * stride
            grid = torch.stack(torch.meshgrid(places, places, indexing="xy"), -1).reshape(1, -1, 2)
            boxes = torch.cat([grid - side[..., :2], grid + side[..., 2:]], -1)
            score = torch.sqrt(self.cls(y).sigmoid() * self.ctr(y).sigmoid()).flatten(2).mT
            outputs.append(torch.cat([boxes, score], -1))
        best, label = torch.cat(outputs, 1)[..., 4:].max(-1)
        return torch.cat(outputs, 1)[..., :4], best, label


class Anchored(Levels):
    """As YOLOv5: one convolution a level, a view with anchors, a sigmoid, a split into place, size and scores."""

    def __init__(self, nc: int = 5, na: int = 3) -> None:
        super().__init__()
        self.nc, self.no, self.na = nc, nc + 5, na
        self.m = nn.ModuleList(nn.Conv2d(32, self.no * na, 1) for _ in range(2))
        self.register_buffer("sizes", torch.rand(2, 1, na, 1, 1, 2) * 8 + 2)

    def forward(self, x: Tensor) -> Any:
        found, raw = [], []
        for i, y in enumerate(self.levels(x)):
            bs, _, ny, nx = (y := self.m[i](y)).shape
            y = y.view(bs, self.na, self.no, ny, nx).permute(0, 1, 3, 4, 2).contiguous()
            raw.append(y)
            rows, columns = torch.meshgrid(torch.arange(ny), torch.arange(nx), indexing="ij")
            grid = torch.stack((columns, rows), 2).view(1, 1, ny, nx, 2).to(y.dtype)
            xy, wh, conf = y.sigmoid().split((2, 2, self.nc + 1), 4)
            y = torch.cat(((xy * 2 - 0.5 + grid) * 4 * (i + 1), (wh * 2) ** 2 * self.sizes[i], conf), 4)
            found.append(y.view(bs, self.na * nx * ny, self.no))
        return torch.cat(found, 1), raw


class Distributed(Levels):
    """As YOLOv8: boxes as expected bins of a softmax, joined with class scores over levels."""

    def __init__(self, nc: int = 5, reg_max: int = 4) -> None:
        super().__init__()
        self.nc, self.reg_max, self.no = nc, reg_max, nc + reg_max * 4
        self.cv2 = nn.ModuleList(
            nn.Sequential(ConvBN(32, 20), ConvBN(20, 20), conv(20, 4 * reg_max, 1)) for _ in range(2)
        )
        self.cv3 = nn.ModuleList(nn.Sequential(ConvBN(32, 24), ConvBN(24, 24), conv(24, nc, 1)) for _ in range(2))
        self.dfl = nn.Conv2d(reg_max, 1, 1, bias=False).requires_grad_(False)
        self.dfl.weight.data[:] = torch.arange(reg_max, dtype=torch.float32).view(1, reg_max, 1, 1)
        self.register_buffer("centres", torch.rand(2, 80) * 8)

    def forward(self, x: Tensor) -> Any:
        levels = [torch.cat((self.cv2[i](y), self.cv3[i](y)), 1) for i, y in enumerate(self.levels(x))]
        shape = levels[0].shape
        box, cls = torch.cat([y.view(shape[0], self.no, -1) for y in levels], 2).split((self.reg_max * 4, self.nc), 1)
        b, _, a = box.shape
        sides = self.dfl(box.view(b, 4, self.reg_max, a).transpose(2, 1).softmax(1)).view(b, 4, a)
        near, far = sides.chunk(2, 1)
        start, end = self.centres - near, self.centres + far
        return torch.cat((torch.cat(((start + end) / 2, end - start), 1), cls.sigmoid()), 1)


class Points(Levels):
    """As CenterNet: a heat map whose peaks are found by a maximum pool, then gathered sizes and offsets."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        for name, outputs in {"heat": classes, "size": 2, "offset": 2}.items():
            setattr(self, name, nn.Sequential(conv(32, 24), nn.ReLU(), conv(24, 24), nn.ReLU(), conv(24, outputs, 1)))

    def gathered(self, y: Tensor, places: Tensor) -> Tensor:
        flat = y.permute(0, 2, 3, 1).flatten(1, 2)
        return flat.gather(1, places[:, :, None].expand(-1, -1, flat.size(2)))

    def forward(self, x: Tensor) -> Any:
        y = self.levels(x)[0]
        heat = self.heat(y).sigmoid()
        heat = heat * (F.max_pool2d(heat, 3, 1, 1) == heat).to(heat.dtype)
        scores, places = heat.flatten(1).topk(6)
        area = heat.shape[2] * heat.shape[3]
        labels, places = places // area, places % area
        centre = torch.stack([places % heat.shape[3], places // heat.shape[3]], -1) + self.gathered(
            self.offset(y), places
        )
        size = self.gathered(self.size(y), places)
        return torch.cat(
            [centre - size / 2, centre + size / 2, scores[..., None], labels[..., None].to(x.dtype)], dim=2
        )


HEADS = "smooth.0.0 smooth.1.0"
add("single shot boxes", Ssd, SHAPE, prunes=INNER, keeps=f"{HEADS} cls.0 cls.1 reg.0 reg.1")
add("single shot boxes as they are", lambda: Ssd(decode=False), SHAPE, prunes=INNER, keeps="cls.0 cls.1 reg.0 reg.1")
TOWERS = f"{INNER} tower_c.0 tower_r.0"
add("a shared head of anchors", Retina, SHAPE, prunes=TOWERS, keeps="mid_c.0 mid_r.0 cls reg")
add("the best of all anchors", lambda: Retina(best=9), SHAPE, prunes=TOWERS, keeps="mid_c.0 mid_r.0 cls reg", onnx=True)
add("boxes by distances", Fcos, SHAPE, prunes=f"{INNER} smooth.0.0", keeps="tower.0 cls reg ctr")
add("boxes in a view with anchors", Anchored, SHAPE, prunes=INNER, keeps=f"{HEADS} m.0 m.1", onnx=True)
add("boxes as expected bins", Distributed, SHAPE, onnx=True,
    prunes=f"{INNER} {HEADS} cv2.0.0.0 cv3.0.0.0 cv2.1.0.0 cv3.1.0.0",
    keeps="cv3.0.1.0 cv2.0.2 cv3.0.2 cv2.1.2 cv3.1.2 dfl")  # fmt: skip
add("boxes as expected bins and their representation", Distributed, SHAPE, options={"prune_representation": True},
    prunes="cv2.0.1.0 cv3.0.1.0", keeps="cv3.0.2 cv3.1.2 dfl")  # fmt: skip  # the bins are what dfl reads
add("peaks of a heat map", Points, SHAPE, prunes="stem.0 neck.0.0 smooth.0.0 heat.0 size.0 offset.0",
    keeps="heat.2 size.2 offset.2 heat.4 size.4 offset.4")  # fmt: skip
