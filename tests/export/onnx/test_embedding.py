"""A file with its preprocessing inside gives for an image what the network gives for the prepared image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from pruneport.errors import ExportError, InputError, ModelError
from pruneport.export.accuracy import check_images
from pruneport.export.cpu_session import embedded_in, open_cpu_session, open_size, output_names
from pruneport.export.onnx.embedding import embedding_for
from pruneport.export.onnx.exporter import export_network
from pruneport.export.onnx.onnx_file import check_onnx, write_onnx
from pruneport.export.options import ExportOptions
from pruneport.export.parity import check_other_batches, check_seeded
from pruneport.models.images.images import open_images
from pruneport.models.options import ImageOptions
from pruneport.models.record import Preprocessing

MEAN, STD = (0.485, 0.2, 0.406), (0.229, 0.5, 0.125)
FORMS: Any = ("uint8-nhwc", "float-nchw")


class Network(nn.Module):
    """Its first lines only take inputs (B, C, H, W) that lie in memory so."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(channels, 4, 3, padding=1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Any:
        x = x.view(x.shape[0], -1).view(x.shape)
        maps = self.conv(x).relu()
        scores = self.head(maps.mean((2, 3)))
        return {"scores": scores, "classes": scores.argmax(1)}


def known(mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD, origin: str = "the test") -> Preprocessing:
    return Preprocessing(resize=17, interpolation="bilinear", mean=mean, std=std, origin=origin)


@pytest.fixture(scope="module", params=[3, 1])
def photos(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """Four images of 17 x 17 pixels, in colour or grey, of which an input of 12 x 17 is cropped."""
    folder, channels = tmp_path_factory.mktemp("photos"), request.param
    generator = np.random.default_rng(0)
    for number in range(4):
        pixels = generator.integers(0, 256, (17, 17, channels), dtype=np.uint8)
        Image.fromarray(pixels if channels == 3 else pixels[..., 0]).save(folder / f"{number}.png")
    return channels, folder


@pytest.mark.parametrize("dynamic", ["batch", pytest.param("batch,height,width", marks=pytest.mark.slow)])
@pytest.mark.parametrize("form", FORMS)
def test_images_give_what_numpy_and_torch_give_in_float64(
    form: Any, dynamic: Any, photos: tuple[int, Path], tmp_path: Path
) -> None:
    channels, folder = photos
    mean, std = MEAN[:channels], STD[:channels]
    network, shape = Network(channels).eval(), (channels, 12, 17)
    options = ExportOptions(embed_preprocessing=form, dynamic=dynamic)
    write_onnx(network, shape, tmp_path / "model.onnx", {}, options, known(mean, std))
    session = open_cpu_session(tmp_path / "model.onnx")
    pixels = np.stack([np.atleast_3d(np.asarray(Image.open(file)))[2:14] for file in sorted(folder.iterdir())])
    given = pixels if form == "uint8-nhwc" else (pixels.transpose(0, 3, 1, 2) / 255).astype(np.float32)
    inputs = ((pixels / 255.0 - mean) / std).transpose(0, 3, 1, 2)
    with torch.inference_mode():
        wanted = network.double()(torch.from_numpy(np.ascontiguousarray(inputs)))
    scores, classes = session.run(["scores", "classes"], {"input": given})
    np.testing.assert_allclose(scores, wanted["scores"].numpy(), atol=1e-5)
    np.testing.assert_array_equal(classes, wanted["classes"].numpy())

    found = open_images(ImageOptions(images=folder), shape, known(mean, std))
    assert found is not None
    embedding = embedding_for(embedded_in(session), known(mean, std), shape)
    parity, *_ = check_images(found, None, network.float(), session, output_names(session), embedding=embedding)
    assert parity.ok, parity.fault


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_names_stay_and_only_what_is_embedded_comes_before(form: Any, tmp_path: Path) -> None:
    network = Network().eval()
    files = []
    for name in (None, form):
        options = ExportOptions(embed_preprocessing=name, input_names=("photos",), opset=19, external_data=True)
        write_onnx(network, (3, 12, 17), tmp_path / f"{name}.onnx", {}, options, known())
        files.append(onnx.load(tmp_path / f"{name}.onnx"))
    bare, whole = files
    assert [value.name for value in whole.graph.output] == [value.name for value in bare.graph.output]
    assert [value.name for value in whole.graph.input] == ["photos"]
    before = [node for node in whole.graph.node if node.name.startswith("preprocessing/")]
    assert [node.op_type for node in before][-2:] == ["Sub", "Div"]
    others = [node.name for node in whole.graph.node if node not in before]
    assert others == [node.name for node in bare.graph.node]
    weights = {weight.name for weight in whole.graph.initializer} - {weight.name for weight in bare.graph.initializer}
    assert {"preprocessing.mean", "preprocessing.std"} <= weights
    assert [entry.version for entry in whole.opset_import] == [19]
    assert f"it normalises images itself, embedded as {form}" in check_onnx(tmp_path / f"{form}.onnx")


@pytest.mark.parametrize(
    ("form", "options", "dimensions"),
    [
        ("uint8-nhwc", {"batch_size_fixed": 2}, [2, 12, 17, 3]),
        ("float-nchw", {"batch_size_fixed": 2}, [2, 3, 12, 17]),
        ("uint8-nhwc", {"dynamic": "batch,height,width"}, ["batch", "height", "width", 3]),
        ("float-nchw", {"dynamic": "batch,height,width"}, ["batch", 3, "height", "width"]),
    ],
)
def test_sizes_stay_open_or_fixed_where_they_lie(
    form: Any, options: dict[str, Any], dimensions: list[Any], tmp_path: Path
) -> None:
    network, shape = Network().eval(), (3, 12, 17)
    exported = export_network(network, shape, ExportOptions(embed_preprocessing=form, **options), known())
    exported.save(tmp_path / "model.onnx", {})
    check_other_batches(network, exported, shape)
    session = open_cpu_session(tmp_path / "model.onnx")
    assert session.get_inputs()[0].shape == dimensions
    assert open_size(session) is ("dynamic" in options)


@pytest.mark.parametrize("form", FORMS)
def test_a_file_that_takes_out_another_mean_is_found(form: Any, tmp_path: Path) -> None:
    network, shape = Network().eval(), (3, 12, 17)
    options = ExportOptions(embed_preprocessing=form)
    write_onnx(network, shape, tmp_path / "model.onnx", {}, options, known(mean=(0.485, 0.2, 0.42)))
    session = open_cpu_session(tmp_path / "model.onnx")
    for mean, ok in ((0.42, True), (0.406, False)):
        embedding = embedding_for(form, known(mean=(0.485, 0.2, mean)), shape)
        (entry,) = check_seeded("dense", network, session, shape, (3,), output_names(session), embedding=embedding)
        assert (entry.ok, entry.inputs) == (ok, "seeded")


class Whole(nn.Module):
    """Turns its input's size into a number."""

    def forward(self, x: Tensor) -> Tensor:
        return x * float(x.shape[2] + x.shape[3])


def test_a_size_that_becomes_a_number_is_found(tmp_path: Path) -> None:
    options = ExportOptions(embed_preprocessing="uint8-nhwc", dynamic="batch,height,width")
    exported = export_network(Whole().eval(), (3, 12, 17), options, known())
    with pytest.raises(ExportError, match=r"right for images of 12 x 17 alone.*\. At 44 x 81: output differs by"):
        check_other_batches(Whole().eval(), exported, (3, 12, 17))


@pytest.mark.parametrize(
    ("preprocessing", "shape", "said"),
    [
        (None, (3, 8, 8), "nothing is known of how images become the network's inputs"),
        (None, None, "takes several inputs, or what is no image"),
        (None, (4, 8, 8), "the network takes 4 channels; images have 1 or 3"),
        (known(origin="ImageNet's"), (3, 8, 8), "Give `mean` and `std`, of pixels in 0 to 1"),
        (known(origin="ImageNet's; given: `mean`"), (3, 8, 8), "nothing is known"),
        (known(), (1, 8, 8), "a mean of 3 and a deviation of 3 numbers; expected 1 of each"),
        (known(std=(0.5,)), (3, 8, 8), "a mean of 3 and a deviation of 1 numbers; expected 3 of each"),
        (known(std=(0.5, 0.0, 0.5)), (3, 8, 8), "expected finite numbers, and deviations above 0"),
    ],
)
def test_what_cannot_be_embedded_is_named(
    preprocessing: Preprocessing | None, shape: tuple[int, int, int] | None, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        embedding_for("uint8-nhwc", preprocessing, shape)
    assert embedding_for(None, preprocessing, shape) is None


def test_given_numbers_are_no_guess() -> None:
    assert embedding_for("float-nchw", known(origin="ImageNet's; given: `mean`, `std`"), (3, 8, 8)) is not None


def test_a_form_that_is_not_known_is_named(tmp_path: Path) -> None:
    options = ExportOptions(embed_preprocessing="uint8-nhwc")
    write_onnx(Network().eval(), (3, 8, 8), tmp_path / "model.onnx", {}, options, known())
    model = onnx.load(tmp_path / "model.onnx")
    (entry,) = [entry for entry in model.metadata_props if entry.key == "pruneport.embed_preprocessing"]
    entry.value = "int4-chwn"
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ModelError, match=r"embeds its preprocessing as 'int4-chwn'; this version knows uint8-nhwc"):
        open_size(open_cpu_session(tmp_path / "model.onnx"))
