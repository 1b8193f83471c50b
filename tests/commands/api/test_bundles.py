"""``pruneport.save``: a network that other code trained becomes a bundle, or it is said what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pruneport
from pruneport.cli import main
from pruneport.commands import CompressConfig, compress
from pruneport.errors import BundleError, ModelError, OutputError
from small_networks import same_state


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "half"
    quick: dict[str, Any] = {"criterion": "l1", "ranking": "uniform", "recover": "none"}
    compress(CompressConfig(source="pruneport:digits_resnet", weights="DEFAULT", flops=0.5, out=folder, **quick))
    return folder


def trained(half: Path) -> nn.Module:
    """The bundle's network after a step of a training of one's own."""
    network = pruneport.load(half).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    network(torch.randn(8, 1, 8, 8)).square().mean().backward()
    optimizer.step()
    return network


@pytest.mark.parametrize("wrap", [lambda network: network, nn.DataParallel, torch.compile])
def test_it_is_written_as_it_is(wrap: Any, half: Path, tmp_path: Path) -> None:
    network = trained(half)
    folder = pruneport.save(wrap(network), tmp_path / "trained", like=half)
    assert same_state(pruneport.load(folder), network)
    assert network.training
    assert next(network.parameters()).grad is not None
    ours, theirs = (json.loads((place / "plan.json").read_text()) for place in (folder, half))
    assert ours["training"] == "outside"
    assert ours | {"training": None} == theirs
    assert "Fine-tuning: outside pruneport" in (folder / "README.md").read_text()


@pytest.mark.slow
def test_it_goes_on_like_any_bundle(half: Path, tmp_path: Path) -> None:
    folder = pruneport.save(trained(half), tmp_path / "trained", like=half)
    assert main(["export", str(folder)]) == 0
    assert main(["verify", str(folder), "--parity-batches", "1"]) == 0
    assert main(["bench", str(folder), "--batches", "1", "--repeats", "2", "--warmup", "1"]) == 0
    assert "outside pruneport" in (folder / "report.html").read_text()
    again = pruneport.save(pruneport.load(folder), tmp_path / "again", like=folder)
    assert json.loads((again / "plan.json").read_text())["training"] == "outside"


def test_what_does_not_fit_is_named(half: Path, tmp_path: Path) -> None:
    network = pruneport.load(half)
    head = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)][-1]
    network.set_submodule(head, nn.Linear(network.get_submodule(head).in_features, 3))
    network.extra = nn.Parameter(torch.zeros(2))
    with pytest.raises(BundleError) as caught:
        pruneport.save(network, tmp_path / "out", like=half)
    for said in (
        f"{head}.weight is float32 (3, ",
        "expected float32 (10, ",
        "extra is float32 (2,), expected not there",
    ):
        assert said in str(caught.value)
    with pytest.raises(BundleError, match=r"and \d+ more. Give the network that was loaded from there"):
        pruneport.save(nn.Linear(2, 2), tmp_path / "out", like=half)
    with pytest.raises(ModelError, match=r"torch.float16; expected torch.float32"):
        pruneport.save(pruneport.load(half).half(), tmp_path / "out", like=half)
    diverged = pruneport.load(half)
    nn.init.constant_(next(diverged.parameters()), float("nan"))
    with pytest.raises(ModelError, match="NaN or infinite weights"):
        pruneport.save(diverged, tmp_path / "out", like=half)
    with pytest.raises(BundleError, match="no bundle at"):
        pruneport.save(diverged, tmp_path / "out", like=tmp_path / "nowhere")
    with pytest.raises(OutputError, match="not empty"):
        pruneport.save(pruneport.load(half), half, like=half)
    assert not (tmp_path / "out").exists()


def test_other_forms_of_training_are_refused(half: Path, tmp_path: Path, rehash: Any) -> None:
    folder = pruneport.save(pruneport.load(half), tmp_path / "trained", like=half)
    plan = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps(plan | {"training": "elsewhere"}))
    rehash(folder)
    with pytest.raises(BundleError, match="training"):
        pruneport.load(folder)
