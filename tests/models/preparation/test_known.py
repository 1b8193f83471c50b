"""What libraries say of a network's images is what the network gets, to the last bit where they prepare one, too."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models

from pruneport.models.images.images import open_images
from pruneport.models.options import ImageOptions, SourceOptions
from pruneport.models.preparation.known import infer_class_names, infer_preprocessing
from pruneport.models.record import Preprocessing, Source
from pruneport.models.source import open_source

FACTORY = """
import timm
from torch import nn

def wrapped():
    return timm.create_model("vit_tiny_patch16_224")

def plain():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

def many():
    return nn.Sequential(nn.Conv2d(5, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""


def known(source: str, **options: Any) -> Preprocessing | None:
    return open_source(SourceOptions(source=source, **options))[1].preprocessing


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A folder with one photo-like image, wider than high."""
    place = np.linspace(0, 6, 300 * 400 * 3).reshape(300, 400, 3)
    pixels = (127 + 100 * np.sin(place * (1, 2, 3)) + np.random.default_rng(0).integers(0, 20, place.shape)) % 256
    (tmp_path / "photos").mkdir()
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "photos" / "one.png")
    return tmp_path / "photos"


def prepared_by_us(found: Preprocessing | None, photo: Path, shape: tuple[int, int, int]) -> torch.Tensor:
    images = open_images(ImageOptions(images=photo), shape, found)
    assert images is not None
    return next(images.batches(1))[0][0]


@pytest.mark.parametrize(
    ("name", "interpolation", "mean", "squash"),
    [
        ("vit_tiny_patch16_224", "bicubic", 0.5, False),
        ("mobilenetv3_small_050.lamb_in1k", "bicubic", 0.485, False),
        ("vgg11.tv_in1k", "bilinear", 0.485, False),
        ("dm_nfnet_f1", "bicubic", 0.485, True),
    ],
)
def test_timm_says_how(name: str, interpolation: str, mean: float, squash: bool, photo: Path) -> None:
    timm = pytest.importorskip("timm")
    config = timm.get_pretrained_cfg(name)
    network = torch.nn.Identity()
    network.pretrained_cfg = config.to_dict()  # what create_model sets, without the weights' memory
    source = Source(spec=f"timm:{name}", model_args={}, input_shape=(3, 224, 224))
    found = infer_preprocessing(source, network)
    assert found is not None
    assert found.interpolation == interpolation
    assert (found.mean[0], found.squash) == (mean, squash)
    assert found.resize == int(224 / config.crop_pct)
    wanted = timm.data.create_transform(**timm.data.resolve_data_config(config.to_dict()), is_training=False)
    with Image.open(photo / "one.png") as image:
        theirs = wanted(image)
    torch.testing.assert_close(prepared_by_us(found, photo, (3, 224, 224)), theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "mobilenet_v2"])
def test_torchvisions_default_weights_say_how(name: str, photo: Path) -> None:
    entry = models.get_model_weights(name)["DEFAULT"]
    found = known(f"torchvision:{name}")
    assert found is not None
    assert found.origin == f"torchvision's {entry}"
    with Image.open(photo / "one.png") as image:
        theirs = entry.transforms()(image)
    torch.testing.assert_close(prepared_by_us(found, photo, (3, 224, 224)), theirs, atol=1e-5, rtol=0)


def test_the_crop_keeps_its_share_at_other_sizes() -> None:
    found = known("torchvision:resnet18", input_shape=(3, 112, 112))
    assert found is not None
    assert found.resize == 128  # 256 of 224


def test_a_detector_normalises_itself() -> None:
    source = Source(spec="torchvision:ssdlite320_mobilenet_v3_large", model_args={}, input_shape=(3, 320, 320))
    found = infer_preprocessing(source, torch.nn.Identity())
    assert found is not None
    assert (found.resize, found.mean, found.std) == (320, (0.0,) * 3, (1.0,) * 3)


def test_the_embedded_network_wants_half() -> None:
    found = known("pruneport:digits_resnet", weights="DEFAULT")
    assert found is not None
    assert (found.resize, found.mean, found.std) == (8, (0.5,), (0.5,))


@pytest.mark.parametrize("factory", ["plain", "wrapped", "many"])
def test_own_factories(factory: str, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    (tmp_path / "users_prepared.py").write_text(FACTORY)
    shape = (5, 32, 32) if factory == "many" else (3, 224, 224)
    found = known(f"{tmp_path / 'users_prepared.py'}:{factory}", input_shape=shape)
    if factory == "many":
        assert found is None
    elif factory == "wrapped":  # a network of timm says it, whoever calls it
        assert found is not None
        assert (found.mean, found.origin) == ((0.5,) * 3, "timm's vit_tiny_patch16_224.augreg_in21k_ft_in1k")
    else:
        assert found is not None
        assert (found.resize, found.interpolation, found.origin) == (224, "bilinear", "ImageNet's")


def test_one_channel_takes_the_average() -> None:
    timm = pytest.importorskip("timm")
    network = torch.nn.Identity()
    network.pretrained_cfg = timm.get_pretrained_cfg("resnet18").to_dict()
    found = infer_preprocessing(Source(spec="timm:resnet18", model_args={}, input_shape=(1, 224, 224)), network)
    assert found is not None
    assert found.mean == pytest.approx(((0.485 + 0.456 + 0.406) / 3,))


def test_a_checkpoint_is_known_by_its_digest() -> None:
    data = os.environ.get("PRUNEPORT_TEST_DATA")
    if not data:
        pytest.skip("PRUNEPORT_TEST_DATA is not set")
    file = Path(data) / "weights" / "mobilenet_v2-b0353104.pth"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    source = Source(
        spec="torchvision:mobilenet_v2",
        model_args={},
        input_shape=(3, 224, 224),
        checkpoint=str(file),
        checkpoint_sha256=digest,
    )
    found = infer_preprocessing(source, torch.nn.Identity())
    assert found is not None
    assert (found.resize, found.origin) == (256, "torchvision's MobileNet_V2_Weights.IMAGENET1K_V1")
    assert infer_class_names(source, torch.nn.Identity())[0] == "tench"
    other = Source(
        spec=source.spec, model_args={}, input_shape=(3, 224, 224), checkpoint="mine.pth", checkpoint_sha256="0" * 64
    )
    assert infer_class_names(other, torch.nn.Identity()) == ()


def test_timms_named_weights_bring_names() -> None:
    timm = pytest.importorskip("timm")
    network = torch.nn.Identity()
    network.pretrained_cfg = timm.get_pretrained_cfg("vit_tiny_patch16_224").to_dict()
    source = Source(spec="timm:vit_tiny_patch16_224", model_args={}, input_shape=(3, 224, 224), weights="DEFAULT")
    names = infer_class_names(source, network)
    assert (len(names), names[0]) == (1000, "tench, Tinca tinca")
