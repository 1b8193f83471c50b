"""Networks of torchvision and timm with a block or two a stage, since what takes time is tracing layer after layer."""

from __future__ import annotations

import timm
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg
from timm.models.nfnet import NfCfg, NormFreeNet
from torch import nn
from torchvision.models import mobilenet_v3_small
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.regnet import BlockParams, RegNet
from torchvision.models.segmentation.lraspp import LRASPP
from torchvision.models.shufflenetv2 import ShuffleNetV2


def shufflenet() -> nn.Module:
    return ShuffleNetV2([2, 2, 2], [24, 48, 96, 192, 1024])


def regnet() -> nn.Module:
    return RegNet(BlockParams.from_init_params(depth=5, w_0=24, w_a=36, w_m=2.5, group_width=8, se_ratio=0.25))


def lraspp() -> nn.Module:
    """LR-ASPP on the small MobileNetV3: its maps at an eighth and a sixteenth of the image."""
    trunk = IntermediateLayerGetter(mobilenet_v3_small().features[:6], {"3": "low", "5": "high"})
    return LRASPP(trunk, 24, 40, num_classes=21)


def vit() -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", depth=3)


def levit() -> nn.Module:
    return timm.create_model("levit_128s", depth=(1, 1, 1))


def convnext() -> nn.Module:
    return timm.create_model("convnext_atto", depths=(1, 1, 1, 1))


def repvgg() -> nn.Module:
    stages = tuple(
        ByoBlockCfg(type="rep", d=blocks, c=width, s=2, gs=0) for blocks, width in ((2, 32), (2, 64), (1, 128))
    )
    return ByobNet(ByoModelCfg(blocks=stages, stem_type="rep", stem_chs=32))


def nf_resnet() -> nn.Module:
    config = NfCfg(depths=(1, 1, 1, 1), channels=(64, 128, 256, 512), stem_type="7x7_pool", stem_chs=64)
    return NormFreeNet(config)
