"""``pruneport.prune`` and what follows from it: a network in memory goes the way that a source goes."""

from __future__ import annotations

import copy
import dataclasses
import doctest
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pruneport
from pruneport.cli import main
from pruneport.commands import CompressConfig, compress
from pruneport.errors import (
    BundleError,
    ImageFolderError,
    InputError,
    ModelError,
    OutputError,
    PruningError,
    SourceError,
    TargetError,
)
from pruneport.models.digits.tasks import write_digits_task
from pruneport.models.preparation.resolve import is_guess
from small_networks import randomise_norms, same_state, zeroed

QUICK: dict[str, Any] = {"criterion": "l1", "ranking": "uniform", "recover": "none"}
ONCE: dict[str, Any] = {"batches": (1,), "repeats": 2, "warmup": 1}


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.body = nn.Sequential(
            nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 16, 3, padding=1)
        )
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + self.body(x)).mean((2, 3)))


def build() -> nn.Module:
    torch.manual_seed(0)
    network = Residual()
    randomise_norms(network)
    return network.eval()


@pytest.fixture(scope="module")
def pruned() -> pruneport.commands.api.pruned.PrunedNetwork:  # type: ignore[name-defined]
    return pruneport.prune(build(), macs=0.5, input_shape=(3, 8, 8), **QUICK)


@pytest.fixture(scope="module")
def half(pruned: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = pruned.save(tmp_path_factory.mktemp("bundles") / "half")
    return folder


def all_of(network: nn.Module) -> dict[str, Any]:
    """All that could be changed of a network."""
    named = [*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False)]
    return {
        "state": {name: tensor.detach().clone() for name, tensor in named},
        "identity": {name: (id(tensor), tensor.data_ptr(), tensor._version) for name, tensor in named},
        "devices": {name: (tensor.device, tensor.dtype, tensor.stride()) for name, tensor in named},
        "requires_grad": {name: tensor.requires_grad for name, tensor in named},
        "grads": {name: None if tensor.grad is None else tensor.grad.clone() for name, tensor in named},
        "modes": {name: module.training for name, module in network.named_modules()},
        "attributes": {name: sorted(vars(module)) for name, module in network.named_modules()},
        "hooks": {
            (name, attribute): list(hooks.items())
            for name, module in network.named_modules()
            for attribute, hooks in vars(module).items()
            if "hooks" in attribute and hasattr(hooks, "items")
        },
    }


def test_the_network_that_is_given_is_left_untouched(tmp_path: Path) -> None:
    network, seen = build().train(), []
    network.get_submodule("body.1").eval()
    network.get_submodule("head").requires_grad_(False)
    network.get_submodule("stem").register_forward_hook(lambda *_: seen.append(1))
    network.get_submodule("head").register_full_backward_hook(lambda *_: seen.append(2))
    network(torch.randn(2, 3, 8, 8)).sum().backward()
    before, calls = all_of(network), len(seen)
    images = torch.randn(40, 3, 8, 8)
    labels = torch.arange(40) % 5
    pruned = pruneport.prune(
        network, macs=0.6, input_shape=(3, 8, 8), calibration=[(images, labels)], criterion="taylor"
    )
    pruned.save(tmp_path / "half")
    pruneport.load(tmp_path / "half", factory=network)
    pruned.export(tmp_path / "half").verify(parity_batches=(1,))
    after = all_of(network)
    torch.testing.assert_close(after.pop("state"), before.pop("state"), rtol=0, atol=0)
    torch.testing.assert_close(after.pop("grads"), before.pop("grads"), rtol=0, atol=0)
    assert after == before
    assert len(seen) == calls
    assert pruned.plan.note is not None
    assert "hooks of the network that was given are not in this one: those on stem, head." in pruned.plan.note
    assert not any(parameter.requires_grad for parameter in pruned.network.get_submodule("head").parameters())


def test_it_goes_the_way_of_compress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    file = tmp_path / "apis_own_network.py"
    file.write_text(f"import sys\nbuild = sys.modules[{__name__!r}].build\n")
    photos = tmp_path / "photos"
    photos.mkdir()
    generator = np.random.default_rng(0)
    for number in range(40):
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(photos / f"{number:02}.png")
    done = compress(
        CompressConfig(
            source=f"{file}:build", input_shape=(3, 8, 8), flops=0.5, calibration=photos, out=tmp_path / "out"
        )
    )
    network = build()
    pruned = pruneport.prune(network, macs=0.5, input_shape=(3, 8, 8), calibration=str(photos))
    ours, theirs = json.loads(pruned.plan.to_json()), json.loads(done.plan.to_json())
    assert {name for name in ours if ours[name] != theirs[name]} <= {"source", "created"}
    assert same_state(pruned.network, pruneport.load(tmp_path / "out", factory=build))


def test_the_pruned_network_computes_what_zeroing_does(pruned: Any) -> None:
    assert pruned.plan.macs_kept == pytest.approx(0.5, abs=0.03)
    assert not pruned.network.training
    images = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(pruned.network(images), zeroed(build(), pruned.plan)(images))
    assert pruned.plan.source.spec == f"{Residual.__module__}:Residual"


def test_calibration_from_a_loader_recovers(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(96, 3, 8, 8, generator=generator)
    loader = DataLoader(TensorDataset(images, torch.zeros(96)), batch_size=10, shuffle=True)
    pruned = pruneport.prune(build(), macs=0.5, input_shape=(3, 8, 8), calibration=loader, calibration_images=64)
    plan = pruned.plan
    assert plan.calibration is not None
    assert plan.recovery is not None
    assert (plan.calibration.count, plan.recovery.name, plan.recovery.heldout) == (64, "reconstruct", 16)
    assert plan.recovery.heldout_error_after is not None
    assert plan.recovery.heldout_error_before is not None
    assert plan.recovery.heldout_error_after < plan.recovery.heldout_error_before
    assert (plan.request.criterion, plan.request.ranking) == ("block-hessian", "sensitivity")


@pytest.mark.parametrize(
    "example",
    [torch.zeros(2, 3, 8, 8), (torch.zeros(1, 3, 8, 8),), {"x": torch.zeros(1, 3, 8, 8)}],
)
def test_the_shape_may_come_from_an_example(example: Any) -> None:
    pruned = pruneport.prune(build(), ratio=0.5, example_inputs=example, **QUICK)
    assert pruned.plan.source.input_shape == (3, 8, 8)
    assert pruned.plan.request.target == "ratio"


@pytest.mark.parametrize("given", [build, build(), build().train()])
def test_a_bundle_loads_bit_for_bit(given: Any, pruned: Any, half: Path) -> None:
    network = pruneport.load(half, factory=given)
    assert same_state(network, pruned.network)
    assert not network.training
    source = json.loads((half / "plan.json").read_text())["source"]
    assert (source["spec"], source["checkpoint"], source["weights"]) == (f"{__name__}:Residual", None, None)


def test_a_bundle_of_a_live_network_asks_for_it(half: Path, tmp_path: Path, capsys: Any) -> None:
    said = f"made from a network in memory, a {__name__}:Residual, .*give `factory`"
    for trust in (False, True):
        with pytest.raises(BundleError, match=said):
            pruneport.load(half, trust_source=trust)
        assert main(["export", str(half), *(["--trust-source"] if trust else [])]) == 2
        assert "give --factory, which builds" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(BundleError, match="the plan does not fit the network"):
        pruneport.load(half, factory=nn.Sequential(nn.Conv2d(3, 4, 1)))
    assert "pass one of its class, or a function that builds it, as factory=" in (half / "README.md").read_text()


def test_a_factory_with_other_weights_exports_no_dense_network(
    half: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert main(["export", str(half), "--factory", f"{__name__}:Residual"]) == 2
    assert "with other weights than the network that was compressed" in " ".join(capsys.readouterr().err.split())
    assert same_state(pruneport.load(half, factory=Residual), pruneport.load(half, factory=build))


@pytest.mark.slow
def test_export_verify_and_bench_follow_each_other(pruned: Any, tmp_path: Path) -> None:
    folder = tmp_path / "half"
    exported = pruned.export(folder)  # saves it, too
    assert exported.files.keys() == {"dense.onnx", "model.onnx"}
    assert (exported.speedup, exported.accuracy, exported.report) == (None, None, None)
    photos = tmp_path / "photos"
    for number in range(10):
        (photos / f"class{number % 5}").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (20 * number, 0, 90)).save(photos / f"class{number % 5}" / f"{number}.png")
    done = exported.verify(images=photos, parity_batches=[1, 2]).bench(provider="cpu", **ONCE)
    assert done.verification.ok
    assert done.accuracy.images == 10
    assert done.speedup > 0
    assert done.report.is_file()
    images = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    for file, network in (("model.onnx", pruned.network), ("dense.onnx", build())):
        (outputs,) = onnxruntime.InferenceSession(folder / file).run(None, {"input": images})
        with torch.no_grad():
            np.testing.assert_allclose(outputs, network(torch.from_numpy(images)), rtol=1e-4, atol=1e-5)
    assert pruned.export(folder).files  # there already: into the same bundle
    with pytest.raises(OutputError, match="not empty"):
        pruned.save(folder)
    pruned.save(folder, overwrite=True)
    assert not (folder / "model.onnx").exists()


@pytest.mark.slow
def test_preprocessing_goes_into_the_files_of_a_network_in_memory(pruned: Any, tmp_path: Path) -> None:
    folder, asked = tmp_path / "half", {"embed_preprocessing": "uint8-nhwc"}
    with pytest.raises(InputError, match=r"nothing is known of how images become .*Give `mean` and `std`"):
        pruned.export(folder, **asked)
    with pytest.raises(ImageFolderError, match="`std` has 2 numbers; expected 1 or 3"):
        pruned.export(folder, **asked, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3))
    with pytest.raises(InputError, match="`embed_preprocessing` is 'nhwc'; expected one of uint8-nhwc, float-nchw"):
        pruned.export(folder, embed_preprocessing="nhwc")
    assert not folder.exists()
    pruned.save(folder)
    done = pruned.export(folder, **asked, mean=(0.4, 0.5, 0.6), std=(0.25,)).verify(parity_batches=(2,))
    assert done.plan.source.preprocessing.std == (0.25,) * 3
    assert pruneport.load(folder, factory=build)  # the plan in the folder is the same
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    inputs = ((pixels / 255 - (0.4, 0.5, 0.6)) / 0.25).transpose(0, 3, 1, 2)
    (outputs,) = onnxruntime.InferenceSession(folder / "model.onnx").run(None, {"input": pixels})
    with torch.no_grad():
        wanted = copy.deepcopy(pruned.network).double()(torch.from_numpy(np.ascontiguousarray(inputs)))
    np.testing.assert_allclose(outputs, wanted, rtol=1e-4, atol=1e-5)
    again = pruned.export(folder, embed_preprocessing="float-nchw")  # said once is enough
    assert again.plan.to_json() == done.plan.to_json()


def test_what_is_known_of_images_is_recorded_of_a_network_in_memory(tmp_path: Path) -> None:
    settings = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2), "crop_pct": 0.8, "interpolation": "bicubic"}
    known, unknown = build(), build()
    known.pretrained_cfg = settings  # as timm's networks have
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(20):
        Image.new("RGB", (12, 12), (12 * number, 0, 90)).save(photos / f"{number}.png")
    folder = {"calibration": photos, "mean": (0.1,), "std": (0.3,), **QUICK}
    plans = [
        pruneport.prune(network, macs=0.6, input_shape=(3, 8, 8), **options).plan.source.preprocessing
        for network, options in ((known, QUICK), (known, folder), (unknown, QUICK), (unknown, folder))
    ]
    assert [(plan.mean, plan.std[0], plan.interpolation, is_guess(plan)) for plan in plans] == [
        ((0.5, 0.4, 0.3), 0.2, "bicubic", False),
        ((0.1,) * 3, 0.3, "bicubic", False),
        ((0.485, 0.456, 0.406), 0.229, "bilinear", True),
        ((0.1,) * 3, 0.3, "bilinear", False),
    ]


@pytest.mark.slow
def test_a_network_that_was_trained_since_says_so(tmp_path: Path) -> None:
    pruned = pruneport.prune(build(), macs=0.5, input_shape=(3, 8, 8), **QUICK)
    pruned.save(tmp_path / "half")
    with torch.no_grad():
        pruned.network.train()(torch.randn(8, 3, 8, 8))  # moves the statistics
    trained = copy.deepcopy(pruned.network)
    with pytest.raises(BundleError, match="before it was trained; choose another folder"):
        pruned.export(tmp_path / "half")
    pruned.save(tmp_path / "later")
    assert pruned.network.training  # saving looks, and changes nothing
    plan = json.loads((tmp_path / "later" / "plan.json").read_text())
    assert plan["training"] == "outside"
    assert same_state(pruneport.load(tmp_path / "later", factory=build), trained)
    done = pruned.export(tmp_path / "later").verify(parity_batches=(1,)).bench(**ONCE)
    assert "Fine-tuning: outside pruneport" in (tmp_path / "later" / "README.md").read_text()
    assert done.report.is_file()
    pruned.network.head = nn.Linear(16, 9)
    with pytest.raises(BundleError, match=r"head.weight is float32 \(9, 16\), expected float32 \(5, 16\)"):
        pruned.save(tmp_path / "other")
    assert not (tmp_path / "other").exists()


class ReturnsNothing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 16, 3)

    def forward(self, x: Tensor) -> None:
        self.layer(x)


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        ({"macs": 1.5}, TargetError, "`macs` is 1.5; expected a share of dense to keep"),
        (
            {"macs": None},
            TargetError,
            "exactly one of `macs`, `params`, `ratio`, `latency` and `latency_ms` is needed; given: none",
        ),
        ({"params": 0.5}, TargetError, "given: `macs` and `params`"),
        ({"macs": 0.001}, TargetError, "`macs=0.001` cannot be reached"),
        ({"input_shape": None}, ModelError, "exactly one of `input_shape` and `example_inputs`"),
        ({"input_shape": (3, 8)}, ModelError, r"`input_shape` is \(3, 8\); expected three"),
        ({"input_shape": (4, 8, 8)}, ModelError, r"refuses an input of shape \(1, 4, 8, 8\)"),
        ({"example_inputs": torch.zeros(1, 3, 8, 8)}, ModelError, "exactly one of"),
        ({"input_shape": None, "example_inputs": (torch.zeros(1), torch.zeros(1))}, ModelError, "refuses inputs"),
        ({"input_shape": None, "example_inputs": torch.zeros(3, 8, 8)}, ModelError, r"refuses inputs .*\(B, 8, 8\)"),
        ({"input_shape": None, "example_inputs": torch.zeros(1, 4, 8, 8)}, ModelError, "refuses an input"),
        ({"input_shape": None, "example_inputs": "photos"}, ModelError, "`example_inputs` .* is str"),
        ({"calibration": []}, ImageFolderError, "yields nothing"),
        ({"calibration": [torch.zeros(4, 3, 9, 9)]}, ImageFolderError, "at place 0, a tensor of shape"),
        ({"calibration": [torch.zeros(4, 3, 8, 8)], "mean": (0.5,)}, ImageFolderError, "`mean`: for a folder"),
        ({"calibration": "no-such-folder"}, ImageFolderError, "no-such-folder"),
        ({"criterion": "l3"}, InputError, "`criterion` is 'l3'; expected one of auto, l1"),
        ({"recover": "bn"}, ImageFolderError, "`recover=bn` needs images"),
        ({"round": 8}, TypeError, "prune takes no argument 'round'. Did you mean round_to?"),
        ({"keep": "layer9"}, TargetError, "`keep` layer9 matches no module"),
    ],
)
def test_what_cannot_be_used_is_named(change: dict[str, Any], kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        pruneport.prune(build(), **{"macs": 0.5, "input_shape": (3, 8, 8), **QUICK, **change})


def test_a_network_that_returns_nothing_is_named() -> None:
    with pytest.raises(ModelError, match="returns no tensor"):
        pruneport.prune(ReturnsNothing(), macs=0.5, input_shape=(3, 8, 8))


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_a_wrapped_network_is_pruned_inside(wrap: Callable[[nn.Module], nn.Module], pruned: Any) -> None:
    found = pruneport.prune(wrap(build().train()), macs=0.5, input_shape=(3, 8, 8), **QUICK)
    assert same_state(found.network, pruned.network)
    assert found.plan.source == pruned.plan.source


@pytest.mark.slow
def test_ship_by_keywords(tmp_path: Path) -> None:
    result = pruneport.ship(
        "pruneport:digits_resnet",
        macs=0.6,
        out=tmp_path / "digits",
        weights="DEFAULT",
        dry_export=False,
        parity_batches=[1],
        **QUICK,
        **ONCE,
    )
    assert same_state(result.network, pruneport.load(tmp_path / "digits"))
    assert result.speedup > 0
    assert result.accuracy is None
    assert result.report.is_file()
    with pytest.raises(TargetError, match="`macs` is 2"):
        pruneport.ship("pruneport:digits_resnet", macs=2, out="digits")
    with pytest.raises(TypeError, match=r"ship takes no argument 'image'.* Did you mean images"):
        pruneport.ship("pruneport:digits_resnet", macs=0.5, out="digits", image="x")  # type: ignore[call-arg]
    with pytest.raises(SourceError, match="is a Residual; expected a string"):
        pruneport.ship(build(), macs=0.5, out="digits")  # type: ignore[arg-type]


@pytest.mark.slow
def test_what_ship_returns_is_what_was_measured(tmp_path: Path) -> None:
    """The ten lines of issue 17, on a small network: ``result.network, result.speedup, result.accuracy, ...``."""
    write_digits_task("mirrored", tmp_path)
    given: dict[str, Any] = {**QUICK, **ONCE, "batches": (4, 1), "parity_batches": [1]}
    result = pruneport.ship(
        "pruneport:digits_resnet",
        weights="DEFAULT",
        macs=0.5,
        out=tmp_path / "half",
        images=tmp_path / "test",
        images_limit=50,
        **given,
    )
    assert result.plan.macs_kept == pytest.approx(0.5, abs=0.01)
    assert isinstance(result.network, nn.Module)
    assert not result.network.training
    verified, timed = (json.loads((tmp_path / "half" / name).read_text()) for name in ("verify.json", "bench.json"))
    session = onnxruntime.InferenceSession(tmp_path / "half" / "model.onnx")
    images = torch.randn(3, 1, 8, 8)
    with torch.inference_mode():
        ours = result.network(images).numpy()
    np.testing.assert_allclose(session.run(None, {"input": images.numpy()})[0], ours, atol=1e-4)
    (smallest,) = [entry for entry in timed["batches"] if entry["batch"] == 1]
    assert result.speedup == smallest["speedup"]["ratio"]
    assert result.accuracy is not None
    counted = dataclasses.asdict(result.accuracy)
    assert counted == verified["accuracy"]
    assert counted["images"] == 50
    assert 0 <= counted["pruned_onnx"] <= counted["dense_torch"] <= 1
    assert result.report == tmp_path / "half" / "report.html"
    assert "at 50 % of its compute" in result.report.read_text().replace("\xa0", " ")
    assert same_state(pruneport.load(tmp_path / "half"), result.network)


def test_the_example_runs() -> None:
    (example,) = doctest.DocTestFinder(recurse=False).find(pruneport.prune, "prune", globs={})
    assert doctest.DocTestRunner().run(example) == (0, 5)


@pytest.mark.slow
def test_a_loaded_network_goes_on_from_its_bundle(half: Path, tmp_path: Path) -> None:
    network = pruneport.load(half, factory=build)
    again = pruneport.prune(network, macs=0.3, like=half, factory=build, **QUICK)
    first = json.loads((half / "plan.json").read_text())
    assert again.plan.macs_kept == pytest.approx(0.3, abs=0.02)  # of the original, not of the half that is left
    assert again.plan.dense.macs == first["dense"]["macs"]
    assert len(again.plan.earlier) == 1
    done = again.export(again.save(tmp_path / "third")).verify().bench(**ONCE)
    assert done.verification is not None
    assert {entry.network for entry in done.verification.parity} == {"dense", "pruned"}
    assert same_state(pruneport.load(tmp_path / "third", factory=build), again.network)
    with torch.no_grad():
        next(again.network.parameters()).mul_(0.5)
    again.save(tmp_path / "trained")
    assert json.loads((tmp_path / "trained" / "plan.json").read_text())["training"] == "outside"


def test_what_was_trained_since_it_was_loaded_is_no_longer_compared_with_the_original(half: Path) -> None:
    network = pruneport.load(half, factory=build)
    with torch.no_grad():
        next(network.parameters()).mul_(0.5)
    images = [torch.randn(8, 3, 8, 8) for _ in range(8)]
    given = {**QUICK, "recover": "bn"}
    again = pruneport.prune(network, macs=0.3, like=half, factory=build, calibration=images, **given)
    assert again.plan.earlier[0].training == "outside"
    assert again.plan.recovery is not None
    assert again.plan.recovery.reference == "start"
    fresh = pruneport.load(half, factory=build)
    again = pruneport.prune(fresh, macs=0.3, like=half, factory=build, calibration=images, **given)
    assert again.plan.recovery is not None
    assert again.plan.recovery.reference == "dense"


def test_a_loaded_network_without_its_bundle_is_dense(half: Path) -> None:
    network = pruneport.load(half, factory=build)
    again = pruneport.prune(network, macs=0.7, input_shape=(3, 8, 8), **QUICK)
    assert again.plan.earlier == ()
    assert again.plan.dense.macs == json.loads((half / "plan.json").read_text())["pruned"]["macs"]


@pytest.mark.parametrize(
    ("given", "kind", "said"),
    [
        ({"input_shape": (3, 8, 8), "factory": build}, ModelError, "are for a network without `like`"),
        ({}, BundleError, "does not say how it is built: give `factory`"),
        ({"macs": 0.9, "factory": build}, TargetError, "`macs` is 0.9 of the dense network, and .* keeps 0.52"),
        ({"network": build(), "factory": build}, BundleError, "the network does not fit"),
    ],
)
def test_what_does_not_go_with_like(half: Path, given: dict[str, Any], kind: type[Exception], said: str) -> None:
    given = {"network": pruneport.load(half, factory=build), "macs": 0.3, **QUICK, **given}
    with pytest.raises(kind, match=said):
        pruneport.prune(given.pop("network"), like=half, **given)


def test_a_factory_without_like_has_nothing_to_build() -> None:
    with pytest.raises(ModelError, match="`factory` is for a network with `like`"):
        pruneport.prune(build(), macs=0.5, input_shape=(3, 8, 8), factory=build)


@pytest.mark.parametrize("chosen", [{}, {"criterion": "l1", "ranking": "uniform", "recover": "reconstruct"}])
def test_inputs_that_say_nothing_are_refused(chosen: dict[str, Any]) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )
    asked: dict[str, Any] = {"macs": 0.6, "input_shape": (3, 8, 8), "round_to": 2, **chosen}
    with pytest.raises(PruningError, match=r"no solution, as where these are blank, all the same.*`criterion=l1`"):
        pruneport.prune(network, calibration=[torch.zeros(64, 3, 8, 8)], **asked)
