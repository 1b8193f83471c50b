"""preprocessor.json, read by its keys alone as an image processor would, makes of an image what we make of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pruneport.models.images.images import open_images
from pruneport.models.options import ImageOptions
from pruneport.models.preparation.huggingface import image_processor, preparation_metadata
from pruneport.models.record import Preprocessing, Source


def independent(content: dict[str, Any], image: Image.Image) -> Any:
    """What the keys say, in the order that Hugging Face's processors go by."""
    if content["do_convert_rgb"]:
        image = image.convert("RGB")
    if content["do_resize"]:
        size = content["size"]
        if "shortest_edge" in size:
            scale = size["shortest_edge"] / min(image.size)
            wanted = (int(image.width * scale + 1e-9), int(image.height * scale + 1e-9))
        else:
            wanted = (size["width"], size["height"])
        image = image.resize(wanted, content["resample"])
    pixels = np.atleast_3d(np.asarray(image)).astype(np.float64)
    if content["do_center_crop"]:
        height, width = content["crop_size"]["height"], content["crop_size"]["width"]
        top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
        pixels = pixels[top : top + height, left : left + width]
    if content["do_rescale"]:
        pixels = pixels * content["rescale_factor"]
    if content["do_normalize"]:
        pixels = (pixels - content["image_mean"]) / content["image_std"]
    return pixels.transpose(2, 0, 1)


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("channels", [1, 3])
def test_it_says_what_we_do(squash: bool, interpolation: Any, channels: int, tmp_path: Path) -> None:
    preprocessing = Preprocessing(
        resize=40, interpolation=interpolation, mean=(0.4,) * channels, std=(0.2,) * channels, squash=squash
    )
    shape = (channels, 32, 31)  # an even rest: where it is odd, the two crops differ by a pixel
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert("L" if channels == 1 else "RGB")
    image.save(tmp_path / "one.png")
    content = json.loads(json.dumps(image_processor(preprocessing, shape)))
    images = open_images(ImageOptions(images=tmp_path), shape, preprocessing)
    assert images is not None
    ours = next(images.batches(1))[0][0].numpy()
    np.testing.assert_allclose(independent(content, image), ours, atol=1e-5)


def test_names_stand_by_number() -> None:
    preprocessing = Preprocessing(resize=8, interpolation="bilinear", mean=(0.5,), std=(0.5,))
    content = image_processor(preprocessing, (1, 8, 8), ("cat", "dog"))
    assert content["id2label"] == {"0": "cat", "1": "dog"}
    assert "id2label" not in image_processor(preprocessing, (1, 8, 8))
    source = Source(
        spec="x:y", model_args={}, input_shape=(1, 8, 8), preprocessing=preprocessing, class_names=("cat", "dog")
    )
    said = preparation_metadata(source)
    assert json.loads(said["class_names"]) == ["cat", "dog"]
    assert json.loads(said["preprocessing"])["image_mean"] == [0.5]
    assert preparation_metadata(Source(spec="x:y", model_args={}, input_shape=(4, 8, 8))) == {}
