"""Compressing in one: networks whose outputs are no plain tensor, and what the plan says of recovery."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from pruneport.compress.options import CompressOptions
from pruneport.compress.pipeline import check_inputs, compress_network
from pruneport.compress.prune import Pruned
from pruneport.compress.surgery.plan import parse_plan
from pruneport.errors import ImageFolderError, ModelError, PruningError
from pruneport.models.outputs import read_outputs
from pruneport.models.record import Source

SHAPE = (1, 8, 8)


@dataclasses.dataclass
class Scores:
    logits: Tensor
    count: int
    more: Any


class Pair(NamedTuple):
    logits: Tensor
    maps: Tensor


class Network(nn.Module):
    """One prunable convolution between two others; ``shape`` makes its outputs of what it has computed."""

    def __init__(self, shape: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 8, 3, padding=1)
        )
        self.norm, self.head, self.shape = nn.BatchNorm2d(8), nn.Linear(8, 5), shape
        self.norm.running_var.uniform_(0.5, 1.5)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        maps = self.norm(self.body(args[0]))
        return self.shape(self.head(maps.mean((2, 3))), maps)


SHAPES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "plain": lambda logits, maps: logits,
    "numbers": lambda logits, maps: {"logits": logits, "count": 3, "share": 0.5, "nothing": None, "name": "x"},
    "dataclass": lambda logits, maps: Scores(logits, 3, {"maps": [maps, None]}),
    "pair": lambda logits, maps: Pair(logits, maps),
    "list": lambda logits, maps: [logits, (maps, 4)],
    "classes first": lambda logits, maps: (logits.argmax(1), logits),
    "single": lambda logits, maps: logits.reshape(1, 5),
    "single classes": lambda logits, maps: logits.argmax(1),
    "nothing": lambda logits, maps: 3,
}


def compressed(shape: str, **options: Any) -> tuple[nn.Module, Pruned]:
    dense = Network(SHAPES[shape]).eval()
    source = Source(spec="x:y", model_args={}, input_shape=SHAPE, weights=options.pop("weights", None))
    return dense, compress_network(dense, source, CompressOptions(flops=0.6, **{"round_to": 1, **options}))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    for number in range(60):
        pixels = torch.randint(0, 256, (8, 8), dtype=torch.uint8, generator=generator)
        Image.fromarray(pixels.numpy()).save(tmp_path / f"{number:02d}.png")
    return tmp_path


@pytest.mark.parametrize("shape", ["plain", "numbers", "dataclass", "pair", "list", "classes first"])
def test_whatever_holds_the_tensors_the_network_is_compressed_alike(shape: str) -> None:
    dense, pruned = compressed(shape)
    _, plain = compressed("plain")
    assert pruned.plan.pruned == plain.plan.pruned
    assert pruned.plan.dense == plain.plan.dense
    assert [group.kept_width for group in pruned.plan.groups] == [group.kept_width for group in plain.plan.groups]
    with torch.inference_mode():
        theirs, ours = (read_outputs(network(torch.randn(2, *SHAPE))) for network in (dense, pruned.network))
    assert {name: leaf.shape for name, leaf in ours.tensors.items()} == {
        name: leaf.shape for name, leaf in theirs.tensors.items()
    }
    assert ours.others == theirs.others


@pytest.mark.parametrize("shape", ["dataclass", "classes first"])
def test_errors_are_measured_on_the_scores(shape: str, photos: Path) -> None:
    given = {"calibration": photos, "calibration_images": 40, "mean": (0.5,), "std": (0.5,)}
    _, pruned = compressed(shape, **given)
    _, plain = compressed("plain", **given)
    done = pruned.plan.recovery
    assert done is not None
    assert (done.name, done.images, done.heldout) == ("reconstruct", 40, 16)
    assert done == plain.plan.recovery


def test_without_recovery_the_loss_is_measured_all_the_same(photos: Path) -> None:
    given = {"calibration": photos, "calibration_images": 40, "mean": (0.5,), "std": (0.5,)}
    _, pruned = compressed("plain", recover="none", **given)
    done = pruned.plan.recovery
    assert done is not None
    assert (done.name, done.heldout) == ("none", 16)
    assert done.heldout_error_before == done.heldout_error_after > 0
    assert parse_plan(pruned.plan.to_json()) == pruned.plan or parse_plan(pruned.plan.to_json()).recovery == done


def test_a_network_that_takes_one_image_at_a_time(photos: Path) -> None:
    said: list[str] = []
    dense = Network(SHAPES["single"]).eval()
    source = Source(spec="x:y", model_args={}, input_shape=SHAPE)
    options = CompressOptions(
        flops=0.6, round_to=1, calibration=photos, calibration_images=40, mean=(0.5,), std=(0.5,), criterion="l1"
    )
    pruned = compress_network(dense, source, options, said.append)
    _, plain = compressed("plain", calibration=photos, calibration_images=40, mean=(0.5,), std=(0.5,), criterion="l1")
    assert [line for line in said if "takes one image at a time" in line]
    assert pruned.plan.masked_error is not None
    ours, theirs = pruned.plan.recovery, plain.plan.recovery
    assert ours is not None
    assert theirs is not None
    assert ours.heldout_error_after == pytest.approx(theirs.heldout_error_after, rel=0.05)
    assert ours.heldout == theirs.heldout == 16


def test_without_images_one_image_at_a_time_is_not_recovered() -> None:
    _, pruned = compressed("single", weights="trained")
    assert pruned.plan.recovery is None
    with pytest.raises(PruningError, match=r"one image at a time, and synthetic inputs are made from .* of many"):
        compressed("single", recover="data-free")


def test_outputs_without_scores_are_pruned_by_weights_alone(photos: Path) -> None:
    _, pruned = compressed("single classes", weights="trained")
    assert pruned.plan.recovery is None
    with pytest.raises(ModelError, match=r"outputs \(output\) hold no floating point numbers for each image"):
        compressed("single classes", calibration=photos, mean=(0.5,), std=(0.5,))


def test_outputs_that_hold_no_tensor_are_named() -> None:
    with pytest.raises(ModelError, match=r"returns no tensor, but output \(int\)"):
        compressed("nothing")


@pytest.mark.parametrize("shape", ["list", "single"])
def test_imitation_on_images(shape: str, photos: Path) -> None:
    """Of 40 images 4 are set aside: of both batches of 20 a tenth; of 40 batches of one every tenth."""
    given = {"calibration": photos, "calibration_images": 40, "mean": (0.5,), "std": (0.5,), "criterion": "l1"}
    _, pruned = compressed(shape, recovery_steps=2, **given)
    done = parse_plan(pruned.plan.to_json()).recovery
    assert done is not None
    assert (done.name, done.images, done.heldout) == ("imitate", 40, 16)
    assert done.imitation is not None
    assert (done.imitation.planned, done.imitation.tuning, done.imitation.features) == (2, 4, "norm")
    assert done.imitation.distance_after <= done.imitation.distance_before


def test_imitation_without_images() -> None:
    _, pruned = compressed("plain", recover="imitate", recovery_steps=1, calibration_images=8, ranking="uniform")
    assert pruned.plan.calibration is not None
    assert pruned.plan.calibration.inputs == "synthetic"
    done = pruned.plan.recovery
    assert done is not None
    assert done.imitation is not None
    assert (done.name, done.imitation.tuning) == ("imitate", 4)  # all four views of one of eight inputs


def test_imitation_on_too_few_images_is_refused_before_any_work(photos: Path) -> None:
    said: list[Any] = []
    dense, source = Network(SHAPES["plain"]).eval(), Source(spec="x:y", model_args={}, input_shape=SHAPE)
    options = CompressOptions(flops=0.6, calibration=photos, calibration_images=31, recover="imitate")
    with pytest.raises(ImageFolderError, match="needs 32 calibration inputs at least, and has 31"):
        compress_network(dense, source, options, said.append)
    assert not any("scoring" in str(line) for line in said)


@pytest.mark.parametrize(
    ("shape", "options", "said"),
    [
        ("plain", {"criterion": "taylor"}, "the calibration folder has 2 classes, the network's head 5"),
        ("plain", {"criterion": "taylor", "calibration": "zero"}, None),  # no class folders
        ("plain", {"criterion": "taylor", "calibration": "zero", "calibration_labels": "folder"}, "no class folders"),
        ("plain", {"criterion": "taylor", "calibration_labels": "predicted"}, None),
        ("plain", {"criterion": "l1"}, None),  # which reads no labels
        ("single", {"criterion": "taylor", "calibration_labels": "predicted"}, None),
        ("single classes", {"criterion": "l1"}, "hold no floating point numbers for each image"),
        ("plain", {"recover": "imitate"}, "needs 32 calibration inputs at least, and has 8"),
    ],
)
def test_images_that_do_not_fit_are_met_before_any_work(
    shape: str, options: dict[str, Any], said: str | None, tmp_path: Path
) -> None:
    for place in range(8):
        file = tmp_path / ("zero" if place % 2 else "one") / f"{place}.png"
        file.parent.mkdir(exist_ok=True)
        Image.new("L", SHAPE[1:], 30 * place).save(file)
    folder = tmp_path / options.pop("calibration", "")
    asked = CompressOptions(flops=0.6, calibration=folder, **options)
    dense, source = Network(SHAPES[shape]).eval(), Source(spec="x:y", model_args={}, input_shape=SHAPE)
    if said is None:
        check_inputs(asked, dense, source)
        return
    with pytest.raises((ImageFolderError, ModelError), match=said):
        check_inputs(asked, dense, source)
