"""Parity: ONNX Runtime's outputs are torch's, or it is said where they are not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from PIL import Image
from torch import Tensor, nn

from pruneport.errors import ExportError, ImageFolderError, InputError, ParityError
from pruneport.export.accuracy import check_images
from pruneport.export.cpu_session import fitting_batches, fixed_batch, open_cpu_session, output_names
from pruneport.export.onnx.onnx_file import write_onnx
from pruneport.export.options import ExportOptions, ParityOptions
from pruneport.export.parity import check_seeded
from pruneport.export.verification import Verification, require_parity
from pruneport.export.verify import verify_files
from pruneport.models.images.images import open_images
from pruneport.models.outputs import FLOAT32


class _Stub:
    """A session that returns the network's own outputs, each changed by ``change``."""

    def __init__(self, network: nn.Module, change: Any) -> None:
        self.network, self.change = network, change

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name="input")]

    def run(self, _: None, feed: dict[str, Any]) -> list[Any]:
        with torch.inference_mode():
            return [self.change(self.network(torch.from_numpy(feed["input"])).numpy())]


def _perturbed(path: Path, target: Path, by: float = 0.01) -> Path:
    model = onnx.load(path)
    weight = max(model.graph.initializer, key=lambda entry: np.prod(entry.dims))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) + np.float32(by), weight.name))
    onnx.save(model, target)
    return target


def _verification(parity: Any) -> Verification:
    return Verification(checks=(), parity=tuple(parity), accuracy=None, files={})


def test_the_exported_network_agrees(digits: Any, digits_onnx: Path) -> None:
    session = open_cpu_session(digits_onnx)
    results = check_seeded("pruned", digits.pruned.network, session, (1, 8, 8), (1, 3))
    assert [(entry.network, entry.batch, entry.ok) for entry in results] == [("pruned", 1, True), ("pruned", 3, True)]
    assert all(entry.max_abs_error < 1e-5 and entry.top1_agreement == 1.0 for entry in results)
    require_parity(_verification(results))


def test_changed_weights_are_found(digits: Any, digits_onnx: Path, tmp_path: Path) -> None:
    session = open_cpu_session(_perturbed(digits_onnx, tmp_path / "wrong.onnx"))
    results = check_seeded("pruned", digits.pruned.network, session, (1, 8, 8), (2, 5))
    assert not any(entry.ok for entry in results)
    with pytest.raises(ParityError) as raised:
        require_parity(_verification(results))
    lines = str(raised.value).splitlines()
    assert len(lines) == 3
    for line, batch in zip(lines[1:], (2, 5), strict=True):
        assert f"pruned fp32 on seeded inputs, batch {batch}: max error" in line
        assert "allowed 1e-05 + 0.0001 of the largest output" in line


def test_the_dense_network_is_not_the_pruned_one(digits: Any, digits_onnx: Path) -> None:
    assert not check_seeded("pruned", digits.dense, open_cpu_session(digits_onnx), (1, 8, 8), (1,))[0].ok


@pytest.mark.parametrize(("share", "ok"), [(0.9, True), (1.1, False)])
def test_the_tolerance_is_atol_and_a_share_of_the_largest_output(share: float, ok: bool) -> None:
    tolerance = FLOAT32

    def change(outputs: Any) -> Any:
        allowed = tolerance.atol + tolerance.rtol * float(np.abs(outputs).max())
        shifted = outputs.astype(np.float64)
        shifted.flat[np.abs(outputs).argmin()] += share * allowed  # the smallest may be as wrong as the largest
        return shifted

    network = nn.Flatten()
    (entry,) = check_seeded("dense", network, _Stub(network, change), (2, 3, 3), (4,))
    assert entry.ok is ok
    assert entry.max_rel_error * (1 / share) == pytest.approx(1e-4, rel=0.1)


@pytest.mark.parametrize("change", [lambda o: o * np.nan, lambda o: o[:1], lambda o: o + np.inf, lambda o: o[:, :3]])
def test_nonsense_is_no_agreement(change: Any) -> None:
    network = nn.Flatten()
    (entry,) = check_seeded("dense", network, _Stub(network, change), (2, 2, 2), (3,))
    assert not entry.ok
    with pytest.raises(ParityError, match="dense fp32 on seeded inputs, batch 3"):
        require_parity(_verification([entry]))


class _Many(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.conv, self.head = kind, nn.Conv2d(1, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Any:
        features = self.conv(x)
        scores = self.head(features.mean((2, 3)))
        return {
            "dict": {"out": scores, "aux": features},
            "tuple": (scores, features),
            "nested": {"first": [scores, (features,)], "second": features * 2},
        }[self.kind]


@pytest.mark.parametrize(("kind", "count"), [("dict", 2), ("tuple", 2), ("nested", 3)])
def test_every_output_is_compared(kind: str, count: int, tmp_path: Path) -> None:
    network = _Many(kind).eval()
    write_onnx(network, (1, 6, 6), tmp_path / "many.onnx", {})
    session = open_cpu_session(tmp_path / "many.onnx")
    assert len(session.get_outputs()) == count
    assert all(entry.ok for entry in check_seeded("dense", network, session, (1, 6, 6), (1, 4)))

    class _LastWrong:
        get_inputs = session.get_inputs

        def run(self, *arguments: Any) -> Any:
            return [*(outputs := session.run(*arguments))[:-1], outputs[-1] + 1]

    assert not check_seeded("dense", network, _LastWrong(), (1, 6, 6), (1,))[0].ok


class _HalfTheBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, -1)


class _Blind(nn.Module):
    """Whatever it sees, its bias comes out; as with a head whose weights were never trained."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 3)
        nn.init.zeros_(self.head.weight)
        self.head.bias.data = bias * torch.arange(3.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).mean((2, 3)))


@pytest.mark.parametrize("bias", [0.0, 5.0])
def test_outputs_that_never_change_are_marked(bias: float, tmp_path: Path) -> None:
    network = _Blind(bias).eval()
    write_onnx(network, (1, 6, 6), tmp_path / "blind.onnx", {})
    alone, several = check_seeded("dense", network, open_cpu_session(tmp_path / "blind.onnx"), (1, 6, 6), (1, 3))
    assert alone.ok
    assert several.ok
    assert several.constant
    assert alone.constant is (bias == 0)  # one input has nothing to differ from
    network.head.weight.data += 0.1
    write_onnx(network, (1, 6, 6), tmp_path / "sees.onnx", {})
    sees = check_seeded("dense", network, open_cpu_session(tmp_path / "sees.onnx"), (1, 6, 6), (1, 3))
    assert [entry.constant for entry in sees] == [False, False] or bias == 0


def test_a_batch_that_does_not_run_is_named(tmp_path: Path) -> None:
    network = _HalfTheBatch().eval()
    write_onnx(network, (1, 3, 5), tmp_path / "half.onnx", {})
    session = open_cpu_session(tmp_path / "half.onnx")
    assert check_seeded("dense", network, session, (1, 3, 5), (4,))[0].ok
    stub = _Stub(nn.Identity(), lambda outputs: session.run(None, {"input": outputs})[0])
    with pytest.raises(ExportError, match=r"does not run on inputs of shape \(3, 1, 3, 5\)"):
        check_seeded("dense", nn.Identity(), stub, (1, 3, 5), (3,))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Four images of each of ten digits, drawn at random."""
    generator = np.random.default_rng(0)
    for index in range(40):
        folder = tmp_path / "images" / str(index // 4)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / f"{index:02}.png")
    return tmp_path / "images"


def test_accuracy_is_what_counting_by_hand_gives(digits: Any, digits_onnx: Path, images: Path) -> None:
    found = open_images(ParityOptions(images=images, mean=(0.4,), std=(0.3,)), (1, 8, 8))
    assert found is not None
    parity, accuracy, agreement = check_images(
        found, digits.dense, digits.pruned.network, open_cpu_session(digits_onnx)
    )
    files = sorted(images.rglob("*.png"))
    pixels = np.stack([np.asarray(Image.open(file), dtype=np.float32) for file in files])[:, None]
    inputs = ((pixels / 255 - 0.4) / 0.3).astype(np.float32)
    labels = np.array([int(file.parent.name) for file in files])
    with torch.inference_mode():
        dense, pruned = (net(torch.from_numpy(inputs)).numpy() for net in (digits.dense, digits.pruned.network))
    (in_onnx,) = open_cpu_session(digits_onnx).run(None, {"input": inputs})
    assert accuracy is not None
    assert accuracy.images == 40
    assert accuracy.folder == "images"
    assert accuracy.dense_torch == pytest.approx((dense.argmax(1) == labels).mean())
    assert accuracy.pruned_torch == pytest.approx((pruned.argmax(1) == labels).mean())
    assert accuracy.pruned_onnx == pytest.approx((in_onnx.argmax(1) == labels).mean())
    before, after = dense.argmax(1) == labels, in_onnx.argmax(1) == labels
    assert accuracy.only_dense == sum(before & ~after)
    assert accuracy.only_pruned == sum(after & ~before)
    assert agreement is not None
    assert (agreement.images, agreement.folder) == (40, "images")
    assert agreement.top1 == pytest.approx((dense.argmax(1) == in_onnx.argmax(1)).mean())
    assert accuracy.dense_torch != accuracy.pruned_torch  # else the columns could be swapped unseen
    assert parity.ok
    assert parity.inputs == "images"


def test_images_without_labels_give_no_accuracy(digits: Any, digits_onnx: Path, images: Path) -> None:
    found = open_images(ParityOptions(images=images / "3"), (1, 8, 8))
    assert found is not None
    networks = (digits.dense, digits.pruned.network)
    parity, accuracy, agreement = check_images(found, *networks, open_cpu_session(digits_onnx))
    assert parity.ok
    assert accuracy is None
    assert agreement is not None
    inputs, _ = next(found.batches(4))
    with torch.inference_mode():
        dense, pruned = (network(inputs).argmax(1) for network in networks)
    assert agreement.top1 == pytest.approx(float((dense == pruned).float().mean()))
    *_, alone = check_images(found, None, digits.pruned.network, open_cpu_session(digits_onnx))
    assert alone is None


def test_wrong_outputs_on_images_are_found(digits: Any, digits_onnx: Path, images: Path, tmp_path: Path) -> None:
    found = open_images(ParityOptions(images=images), (1, 8, 8))
    assert found is not None
    session = open_cpu_session(_perturbed(digits_onnx, tmp_path / "wrong.onnx", by=0.1))
    parity, *_ = check_images(found, digits.dense, digits.pruned.network, session)
    with pytest.raises(ParityError, match="pruned fp32 on images inputs"):
        require_parity(_verification([parity]))


def test_classes_that_do_not_match_the_head_are_refused(digits: Any, digits_onnx: Path, images: Path) -> None:
    (images / "eleventh").mkdir()
    (images / "3/12.png").rename(images / "eleventh/12.png")
    found = open_images(ParityOptions(images=images), (1, 8, 8))
    assert found is not None
    with pytest.raises(ImageFolderError, match=r"has 11 class folders; the network's output has shape \(10,\)"):
        check_images(found, digits.dense, digits.pruned.network, open_cpu_session(digits_onnx))


class _NearTie(nn.Module):
    """Whether pixels are above a threshold that one of the seeded inputs, of one image, all but reaches."""

    def __init__(self) -> None:
        super().__init__()
        (self.seeded,) = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(1))

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1) > self.seeded.flatten()[5] - 1e-7).long()


def test_a_class_that_rounding_decides_is_undecided_and_any_other_is_wrong() -> None:
    network = _NearTie()

    def flipped(*places: int) -> Any:
        def change(outputs: Any) -> Any:
            outputs[:, list(places)] = 1 - outputs[:, list(places)]
            return outputs

        return check_seeded("dense", network, _Stub(network, change), (1, 4, 4), (1,))[0]

    assert (flipped().ok, flipped().undecided) == (True, 0)
    assert (flipped(5).ok, flipped(5).undecided) == (True, 1)
    assert (flipped(6).ok, flipped(6).fault) == (False, "output differs in 1 of 16 whole numbers")
    with pytest.raises(ParityError, match="output differs in 1 of 16 whole numbers"):
        require_parity(_verification([flipped(6)]))


class _NumberFirst(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return {"mean": x.mean(), "classes": x.flatten(1).argmax(1), "scores": x.flatten(1)[:, :10]}


def test_on_images_every_output_is_compared_and_accuracy_is_of_the_scores(images: Path, tmp_path: Path) -> None:
    network = _NumberFirst().eval()
    write_onnx(network, (1, 8, 8), tmp_path / "many.onnx", {})
    session, found = open_cpu_session(tmp_path / "many.onnx"), open_images(ParityOptions(images=images), (1, 8, 8))
    assert found is not None
    parity, accuracy, _ = check_images(found, network, network, session, output_names(session))
    scores = torch.cat([inputs for inputs, _ in found.batches(40)]).flatten(1)[:, :10]
    assert parity.ok
    assert accuracy is not None
    assert accuracy.dense_torch == accuracy.pruned_onnx
    assert accuracy.pruned_onnx == pytest.approx(float((scores.argmax(1) == torch.tensor(found.labels)).float().mean()))

    class _ClassesWrong:
        get_inputs = session.get_inputs

        def run(self, *arguments: Any) -> Any:
            mean, classes, rest = session.run(*arguments)
            return [mean, classes + 1, rest]

    parity, *_ = check_images(found, network, network, _ClassesWrong(), output_names(session))
    assert (parity.ok, parity.fault) == (False, "classes differs in 40 of 40 whole numbers")


class _ForThree(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(3, -1)[:, :10]


def test_images_fill_the_fixed_batch_and_each_is_counted_once(images: Path, tmp_path: Path) -> None:
    network = _ForThree().eval()
    write_onnx(network, (1, 8, 8), tmp_path / "three.onnx", {}, ExportOptions(batch_size_fixed=3))
    session, found = open_cpu_session(tmp_path / "three.onnx"), open_images(ParityOptions(images=images), (1, 8, 8))
    assert found is not None
    assert len(found) % 3 == 1
    parity, accuracy, _ = check_images(found, None, network, session, output_names(session), fixed_batch(session))
    scores = torch.cat([inputs for inputs, _ in found.batches(40)]).flatten(1)[:, :10]
    assert (parity.ok, parity.batch) == (True, 3)
    assert accuracy is not None
    assert accuracy.images == 40
    assert accuracy.pruned_onnx == pytest.approx(float((scores.argmax(1) == torch.tensor(found.labels)).float().mean()))


def test_batches_follow_the_file_unless_others_were_asked_for() -> None:
    assert fitting_batches(ParityOptions(), None) == (1, 3, 8)
    assert fitting_batches(ParityOptions(), 4) == (4,)
    assert fitting_batches(ParityOptions(parity_batches=(4,)), 4) == (4,)
    with pytest.raises(InputError, match=r"`parity_batches` 1, 2: the networks are exported for a batch of 4 alone"):
        fitting_batches(ParityOptions(parity_batches=(1, 4, 2)), 4)


def test_a_file_from_before_outputs_were_named_is_compared_in_order(
    digits: Any, digits_onnx: Path, tmp_path: Path
) -> None:
    model = onnx.load(digits_onnx)
    kept = [entry for entry in model.metadata_props if entry.key != "pruneport.outputs"]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    made = next(node for node in model.graph.node if model.graph.output[0].name in node.output)
    made.output[0] = model.graph.output[0].name = "linear_7"
    onnx.save(model, tmp_path / "old.onnx")
    session = open_cpu_session(tmp_path / "old.onnx")
    assert output_names(session) is None
    assert check_seeded("pruned", digits.pruned.network, session, (1, 8, 8), (2,), output_names(session))[0].ok


def test_a_new_file_whose_outputs_have_other_names_fails(digits: Any, digits_onnx: Path, tmp_path: Path) -> None:
    model = onnx.load(digits_onnx)
    made = next(node for node in model.graph.node if model.graph.output[0].name in node.output)
    made.output[0] = model.graph.output[0].name = "linear_7"
    onnx.save(model, tmp_path / "new.onnx")
    session = open_cpu_session(tmp_path / "new.onnx")
    (entry,) = check_seeded("pruned", digits.pruned.network, session, (1, 8, 8), (2,), output_names(session))
    assert (entry.ok, entry.fault) == (False, "torch returns output, the ONNX file linear_7")


@pytest.mark.parametrize("batches", [(), (0,), (1, -1)])
def test_batches_that_are_none_are_refused(batches: tuple[int, ...], digits: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"`parity_batches` .* expected batch sizes of at least 1"):
        verify_files(tmp_path, digits.dense, digits.pruned.network, (1, 8, 8), ParityOptions(parity_batches=batches))
