"""Small detectors of our own, and torchvision's with weights that find something, as a user's file has them.

Random detectors find nothing, or the same in every image: here BatchNorms have the statistics of inputs, and scores are
spread.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import get_model
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.models.segmentation.deeplabv3 import DeepLabHead, DeepLabV3
from torchvision.models.segmentation.fcn import FCN, FCNHead
from torchvision.ops import MultiScaleRoIAlign, batched_nms

SIZE = 64
_SCORES = (".cls", "ctrness", "classification_head.module_list")
_BOXES = (".reg.", ".bbox", "regression_head.module_list")


class Block(nn.Sequential):
    """Convolution, BatchNorm, SiLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs), nn.SiLU()
        )


class Trunk(nn.Module):
    """Two levels of 32 channels, an eighth and a sixteenth of the image."""

    out_channels = 32

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(Block(3, 16, 3, 2), Block(16, 24, 3, 2), Block(24, 32, 3, 2))
        self.deep = Block(32, 48, 3, 2)
        self.inner = nn.ModuleList([nn.Conv2d(32, 32, 1), nn.Conv2d(48, 32, 1)])

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        low = self.stem(images)
        deep = self.inner[1](self.deep(low))
        low = self.inner[0](low) + F.interpolate(deep, scale_factor=2.0)
        return OrderedDict([("0", low), ("1", deep)])


class Ssd(nn.Module):
    """Boxes around places; what overlaps a better one of its class is left out, as many as there are."""

    def __init__(self, classes: int = 4, threshold: float = 0.4) -> None:
        super().__init__()
        self.classes, self.threshold = classes, threshold
        self.trunk = Trunk()
        self.tower = Block(32, 40)
        self.cls, self.reg = nn.Conv2d(40, classes, 1), nn.Conv2d(40, 4, 1)

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        scores, boxes = [], []
        for stride, level in zip((8, 16), self.trunk(images).values(), strict=True):
            level = self.tower(level)
            scores.append(self.cls(level).flatten(2).mT.sigmoid())
            places = (torch.arange(level.shape[-1], dtype=images.dtype, device=images.device) + 0.5) * stride
            grid = torch.stack(torch.meshgrid(places, places, indexing="xy"), -1).reshape(1, -1, 2)
            sides = stride * self.reg(level).flatten(2).mT.exp().clamp(max=8)
            boxes.append(torch.cat([grid - sides[..., :2], grid + sides[..., 2:]], -1))
        pairs = zip(torch.cat(scores, 1), torch.cat(boxes, 1), strict=True)
        return [self.chosen(own, where) for own, where in pairs]

    def chosen(self, scores: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        """What is kept of one image."""
        place, label = torch.where(scores > self.threshold)
        boxes, scores = boxes[place], scores[place, label]
        kept = batched_nms(boxes, scores, label, 0.5)[:40]
        return {"boxes": boxes[kept], "scores": scores[kept], "labels": label[kept] + 1}


class Yolo(nn.Module):
    """Spatial pyramid pooling, a neck of upsampling and concatenation, and towers for boxes and for classes apart."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem, self.low, self.deep = Block(3, 16, 3, 2), Block(16, 24, 3, 2), Block(24, 48, 3, 2)
        self.squeeze, self.spread = Block(48, 24, 1), Block(96, 48, 1)
        self.up, self.down, self.out = Block(72, 32), Block(32, 32, 3, 2), Block(80, 48)
        self.reg = nn.ModuleList(nn.Sequential(Block(width, 24), nn.Conv2d(24, 4, 1)) for width in (32, 48))
        self.cls = nn.ModuleList(nn.Sequential(Block(width, 24), nn.Conv2d(24, classes, 1)) for width in (32, 48))

    def forward(self, images: Tensor) -> Tensor:
        low = self.low(self.stem(images))
        pooled = [self.squeeze(self.deep(low))]
        for _ in range(3):
            pooled.append(F.max_pool2d(pooled[-1], 5, 1, 2))
        deep = self.spread(torch.cat(pooled, 1))
        low = self.up(torch.cat([F.interpolate(deep, scale_factor=2.0), low], 1))
        levels = low, self.out(torch.cat([self.down(low), deep], 1))
        outputs = [
            torch.cat([reg(level), cls(level).sigmoid()], 1).flatten(2)
            for reg, cls, level in zip(self.reg, self.cls, levels, strict=True)
        ]
        return torch.cat(outputs, 2)


class Detr(nn.Module):
    """A trunk whose places and learned queries go through nn.Transformer; a class and a box for each query."""

    def __init__(self, width: int = 32, queries: int = 12, classes: int = 5) -> None:
        super().__init__()
        self.trunk = nn.Sequential(Block(3, 16, 3, 2), Block(16, 24, 3, 2), Block(24, 40, 3, 2))
        self.project = nn.Conv2d(40, width, 1)
        self.transformer = nn.Transformer(width, 4, 1, 1, 64, dropout=0.0, batch_first=True)
        self.places = nn.Parameter(torch.randn(64, width))
        self.queries = nn.Parameter(torch.randn(queries, width))
        self.cls = nn.Linear(width, classes + 1)
        self.bbox = nn.Sequential(nn.Linear(width, 48), nn.ReLU(), nn.Linear(48, 4))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        places = self.project(self.trunk(images)).flatten(2).mT + self.places
        queries = self.queries.unsqueeze(0).expand(images.shape[0], -1, -1)
        found = self.transformer(places, queries)
        return {"pred_logits": self.cls(found), "pred_boxes": self.bbox(found).sigmoid()}


def ssd() -> nn.Module:
    return settled(Ssd())


def two_stages() -> nn.Module:
    """torchvision's Faster R-CNN on a small trunk: proposals, regions pooled from two levels, boxes for each class."""
    torch.manual_seed(0)
    return settled(
        FasterRCNN(
            Trunk(),
            min_size=SIZE,
            max_size=SIZE,
            rpn_anchor_generator=AnchorGenerator(((16,), (32,)), ((0.5, 1.0, 2.0),) * 2),
            box_roi_pool=MultiScaleRoIAlign(["0", "1"], 3, 2, canonical_scale=32, canonical_level=3),
            rpn_pre_nms_top_n_test=60,
            rpn_post_nms_top_n_test=30,
            box_detections_per_img=40,
            box_head=nn.Sequential(nn.Flatten(), nn.Linear(32 * 9, 48), nn.ReLU()),
            box_predictor=Predictor(48, 4),
        )
    )


class Predictor(nn.Module):
    """Scores and boxes for each class."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.cls_score, self.bbox_pred = nn.Linear(inputs, classes), nn.Linear(inputs, 4 * classes)

    def forward(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls_score(regions), self.bbox_pred(regions)


def yolo() -> nn.Module:
    return settled(Yolo())


def detr() -> nn.Module:
    torch.manual_seed(0)
    return Detr().eval()


def ssdlite() -> nn.Module:
    """torchvision's, whole."""
    return settled(
        get_model("ssdlite320_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=4), 320, 1.0
    )


def retinanet() -> nn.Module:
    """torchvision's on a ResNet-18 and its feature pyramid, of two levels and one that is pooled from them."""
    torch.manual_seed(0)
    resnet: dict[str, Any] = {"backbone_name": "resnet18", "weights": None, "norm_layer": nn.BatchNorm2d}
    trunk = resnet_fpn_backbone(**resnet, trainable_layers=5, returned_layers=[3, 4])
    anchors = AnchorGenerator(((16, 24), (32, 48), (64, 80)), ((0.5, 1.0, 2.0),) * 3)
    sizes = {"min_size": SIZE, "max_size": SIZE}
    # Its boxes are spread less: float32 itself is 0.01 pixels off float64.
    return settled(RetinaNet(trunk, 4, anchor_generator=anchors, **sizes), SIZE, 0.3, 0.1)


def fcos() -> nn.Module:
    """torchvision's on a small trunk."""
    torch.manual_seed(0)
    anchors = AnchorGenerator(((8,), (16,)), ((1.0,),) * 2)
    return settled(FCOS(Trunk(), 4, min_size=SIZE, max_size=SIZE, anchor_generator=anchors), SIZE, 1.0)


def deeplab() -> nn.Module:
    """torchvision's on a ResNet of one block a stage, the last two dilated."""
    return DeepLabV3(_dilated("layer4"), DeepLabHead(2048, 5))


def fcn() -> nn.Module:
    """torchvision's on such a ResNet, with an auxiliary output."""
    return FCN(_dilated("layer3", "layer4"), FCNHead(2048, 5), FCNHead(1024, 5))


def _dilated(*layers: str) -> nn.Module:
    resnet = ResNet(Bottleneck, [1, 1, 1, 1], replace_stride_with_dilation=[False, True, True])
    return IntermediateLayerGetter(resnet, dict(zip(reversed(layers), ("out", "aux"), strict=False)))


@torch.no_grad()
def settled(network: nn.Module, size: int = SIZE, gain: float = 2.0, boxes: float = 0.5) -> nn.Module:
    """The network in eval mode, with weights that keep the size of what they are given, and scores that are spread."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the mean over all inputs
    network.eval()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.train()
    for _ in range(2):
        network(torch.randn(2, 3, size, size))
    network.eval()
    seen: dict[str, list[Tensor]] = {}
    ends = list(_ends(network))
    hooks = [
        layer.register_forward_hook(lambda _, inputs, output, name=name: seen.setdefault(name, []).append(output.std()))
        for name, layer, _ in ends
    ]
    network(torch.randn(2, 3, size, size))
    for hook in hooks:
        hook.remove()
    for name, layer, spread in ends:
        layer.weight *= (gain if spread else boxes) / torch.stack(seen[name]).mean()
    return network


def _ends(network: nn.Module) -> Iterator[tuple[str, Any, bool]]:
    """Output layers, and whether they give scores."""
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
            for words, spread in ((_SCORES, True), (_BOXES, False)):
                if any(word in f".{name}." for word in words):
                    yield name, layer, spread
                    break
