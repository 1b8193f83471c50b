"""The networks of ``zoo.py``: torchvision's for classification and segmentation, some of every timm family."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import ModuleType

import timm
import torchvision

__all__ = ["NETWORKS", "family", "input_size"]

# Every module of timm with a default input of at most 256 px, mostly by its smallest networks; Inception and Xception.
_TIMM = """
beit_base_patch16_224 beitv2_base_patch16_224
halonet_h1 lambda_resnet26t eca_botnext26ts_256 sehalonet33ts regnetz_b16
mobileone_s0 mobileone_s1 repvgg_a0 repvgg_b0 gernet_s resnet51q
cait_xxs24_224
coat_tiny coat_lite_tiny
convit_tiny
convmixer_768_32
convnext_atto convnext_zepto_rms convnext_tiny convnextv2_atto convnextv2_nano
cpubone_nano
crossvit_tiny_240 crossvit_9_dagger_240
cs3darknet_s cs3darknet_focus_s cspresnet50 cspresnext50 darknet53 cs3sedarknet_l
cspnext_tiny
davit_tiny
deit_tiny_patch16_224 deit_tiny_distilled_patch16_224 deit3_small_patch16_224
densenet121 densenetblur121d
dla34 dla46_c dla60x_c
dpn48b dpn68
edgenext_xx_small edgenext_small
efficientformer_l1
efficientformerv2_s0
efficientnet_b0 efficientnet_lite0 mixnet_s mnasnet_small fbnetc_100 tinynet_e efficientnetv2_rw_t spnasnet_100
efficientvim_m1
efficientvit_b0
efficientvit_m0
eva02_tiny_patch14_224 vit_small_patch16_dinov3
fasternet_t0
fastvit_t8 fastvit_s12
focalnet_tiny_srf
gcvit_xxtiny
ghostnet_050 ghostnetv2_100 ghostnetv3_050
hardcorenas_a
hgnetv2_b0 hgnet_tiny
hiera_tiny_224 hiera_small_abswin_256
hieradet_small
hrnet_w18_small hrnet_w18
iformer_t
inception_next_atto
lcnetv2_small
levit_128s levit_conv_128s
lowformer_b0
mambaout_femto
maxvit_pico_rw_256 coatnet_pico_rw_224 maxvit_rmlp_pico_rw_256 coatnext_nano_rw_224
poolformer_s12 poolformerv2_s12 convformer_s18 caformer_s18
mixer_s16_224 gmlp_ti16_224 gmixer_12_224 resmlp_12_224
mobilenetv3_small_050 mobilenetv3_large_100 lcnet_050 mobilenetv4_conv_small mobilenetv4_hybrid_medium
mobilevit_xxs mobilevitv2_050
mvitv2_tiny
nest_tiny
nextvit_small
nf_regnet_b0 nf_resnet26 dm_nfnet_f0
pit_ti_224 pit_ti_distilled_224
pvt_v2_b0 pvt_v2_b2_li
rdnet_tiny
regnetx_002 regnety_002 regnetz_005
repghostnet_050
repvit_m0_9
res2next50 res2net50_14w_8s
resnest14d resnest26d
resnet18 resnet50 resnext50_32x4d seresnet50 ecaresnet26t resnetaa50 wide_resnet50_2
resnetv2_18 resnetv2_50 resnetv2_50x1_bit
rexnet_100 rexnetr_100
selecsls42
legacy_seresnet18 legacy_seresnext26_32x4d
sequencer2d_s
shvit_s1
skresnet18 skresnext50_32x4d
starnet_s1
swiftformer_xs
swin_tiny_patch4_window7_224
swinv2_cr_tiny_ns_224
swinv2_tiny_window8_256
tiny_vit_5m_224
tnt_s_patch16_224
tresnet_m
twins_pcpvt_small twins_svt_small
vgg11_bn vgg16
visformer_tiny
vit_tiny_patch16_224 vit_small_patch16_224 vit_tiny_r_s16_p8_224
samvit_base_patch16_224 vit_relpos_small_patch16_224 vit_srelpos_small_patch16_224
vitamin_small_224
volo_d1_224
vovnet39a ese_vovnet19b_dw
xception41 xception41p inception_v3
xcit_nano_12_p16_224 xcit_tiny_12_p8_224
"""


def _timm_names() -> list[str]:
    """The networks of timm."""
    return [f"timm:{name}" for name in _TIMM.split()]


def _torchvision_names(module: ModuleType) -> list[str]:
    """The networks of torchvision."""
    return [f"torchvision:{name}" for name in torchvision.models.list_models(module=module)]


NETWORKS: Mapping[str, list[str]] = {
    "torchvision": _torchvision_names(torchvision.models),
    "segmentation": _torchvision_names(torchvision.models.segmentation),
    "timm": _timm_names(),
}
"""Sources by the name under which ``zoo.py`` takes them together."""


def family(spec: str) -> str:
    """The module of timm, or the first letters of torchvision's name."""
    library, _, name = spec.partition(":")
    if library == "timm":
        return str(timm.models.model_entrypoint(name).__module__.split(".")[-1])
    return re.split(r"[\d_]", name)[0]


def input_size(spec: str) -> int:
    """Pixels a side of the input that the network was made for."""
    library, _, name = spec.partition(":")
    if library == "timm":
        config = timm.get_pretrained_cfg(name)
        return 224 if config is None else int(config.input_size[1])
    return 299 if name == "inception_v3" else 224
