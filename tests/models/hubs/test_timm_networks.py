"""timm's networks on the hub and in folders: the real client and the real timm, against a server on this machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import save_for_hf

from pruneport.compress.options import PruneOptions
from pruneport.compress.prune import prune
from pruneport.compress.surgery.rebuild import rebuild_network
from pruneport.errors import CheckpointError, HubError, SourceError
from pruneport.models.options import SourceOptions
from pruneport.models.record import Source
from pruneport.models.source import build_dense, open_source

_ARCHITECTURE = "test_resnet"  # timm's smallest


@pytest.fixture(scope="module")
def network() -> Any:
    """A network as somebody trained it: five classes, grey images, another pooling."""
    torch.manual_seed(3)
    return timm.create_model(_ARCHITECTURE, num_classes=5, in_chans=1, global_pool="max").eval()


@pytest.fixture
def folder(network: Any, tmp_path: Path) -> Path:
    """What timm's save_for_hf writes of it."""
    given = {"num_classes": 5, "in_chans": 1, "global_pool": "max"}
    save_for_hf(network, tmp_path / "saved", model_args=given, safe_serialization="both")
    return tmp_path / "saved"


@pytest.fixture
def on_hub(folder: Path, hub: Any) -> str:
    """Its name on the hub, at its commit."""
    return f"hf-hub:me/birds@{hub.put('me/birds', {path.name: path.read_bytes() for path in folder.iterdir()})}"


def _same(one: Any, other: Any) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


def _edited(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def test_a_network_on_the_hub_is_recorded_by_its_architecture_and_its_commit(
    network: Any, on_hub: str, hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, source = open_source(SourceOptions(source="timm:hf-hub:me/birds"))
    assert _same(opened, network)
    assert (source.spec, source.weights, source.checkpoint) == (f"timm:{_ARCHITECTURE}", on_hub, None)
    assert source.model_args["num_classes"] == 5
    assert source.input_shape == (1, *timm.get_pretrained_cfg(_ARCHITECTURE).input_size[1:])
    assert source.trained
    assert _same(build_dense(source), network)
    pruned = prune(opened, source, PruneOptions(flops=0.7, round_to=4))
    hub.asked.clear()
    state = pruned.network.state_dict()
    assert _same(rebuild_network(pruned.plan, state), pruned.network)
    assert hub.asked == []  # a bundle needs no hub to be loaded


def test_the_commit_holds_what_is_pushed_there_later_does_not(network: Any, on_hub: str, hub: Any) -> None:
    _, source = open_source(SourceOptions(source="timm:hf-hub:me/birds"))
    hub.put("me/birds", {"config.json": b"{}"})
    assert _same(build_dense(source), network)


def test_a_folder_is_recorded_by_its_file_of_weights(network: Any, folder: Path) -> None:
    opened, source = open_source(SourceOptions(source=f"timm:local-dir:{folder}"))
    assert _same(opened, network)
    assert (source.spec, source.weights) == (f"timm:{_ARCHITECTURE}", None)
    assert source.checkpoint == str(folder / "model.safetensors")
    assert source.checkpoint_sha256
    assert source.input_shape[0] == 1
    (folder / "config.json").unlink()
    assert _same(build_dense(source), network)


def test_weights_on_the_hub_for_a_network_that_is_named(network: Any, on_hub: str) -> None:
    options = {"model_arg": ("num_classes=5", "in_chans=1", "global_pool=max"), "input_shape": (1, 32, 32)}
    opened, source = open_source(SourceOptions(source=f"timm:{_ARCHITECTURE}", weights="hf-hub:me/birds", **options))
    assert _same(opened, network)
    assert source.weights == on_hub
    with pytest.raises(SourceError, match=f"holds weights of timm:{_ARCHITECTURE}, not of timm:resnet18"):
        open_source(SourceOptions(source="timm:resnet18", weights="hf-hub:me/birds"))


def test_what_a_user_says_has_the_last_word(on_hub: str, folder: Path, tmp_path: Path) -> None:
    other = timm.create_model(_ARCHITECTURE, num_classes=5, in_chans=1)
    torch.save(other.state_dict(), tmp_path / "mine.pth")
    for source in ("timm:hf-hub:me/birds", f"timm:local-dir:{folder}"):
        options = SourceOptions(
            source=source, checkpoint=tmp_path / "mine.pth", model_arg=("global_pool=avg",), input_shape=(1, 64, 64)
        )
        opened, record = open_source(options)
        assert _same(opened, other)
        assert (record.weights, record.checkpoint) == (None, str(tmp_path / "mine.pth"))
        assert (record.input_shape, record.model_args["global_pool"]) == ((1, 64, 64), "avg")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.pop("architecture"), "is no configuration of timm's|this is not how a hub answers"),
        (lambda config: config.update(architecture="no_such_net"), "timm has no model 'no_such_net'"),
        (
            lambda config: config["model_args"].update(widths=[1, 2]),
            r"with widths=\[1, 2\], and a plan records numbers",
        ),
        (
            lambda config: config["model_args"].update(checkpoint_path="/etc/passwd"),
            "fetch files behind the plan's back",
        ),
        (lambda config: config["model_args"].update({"a b": 1}), "and a plan records numbers"),
    ],
)
def test_configurations_that_are_none(change: Any, message: str, folder: Path, hub: Any) -> None:
    _edited(folder, lambda config: config.setdefault("model_args", {}))
    _edited(folder, change)
    hub.put("me/odd", {path.name: path.read_bytes() for path in folder.iterdir()})
    for source in (f"timm:local-dir:{folder}", "timm:hf-hub:me/odd"):
        with pytest.raises((SourceError, HubError), match=message):
            open_source(SourceOptions(source=source))


@pytest.mark.parametrize("name", ["hf-hub:me/birds", "local-dir:/tmp"])
def test_a_strangers_plan_reads_neither_the_hub_nor_folders_by_its_source(name: str, on_hub: str, hub: Any) -> None:
    source = Source(spec=f"timm:{name}", model_args={}, input_shape=(3, 32, 32), weights="DEFAULT")
    with pytest.raises(SourceError, match="timm has no model"):
        build_dense(source)
    with pytest.raises(HubError, match="is no repository"):
        build_dense(replace(source, spec=f"timm:{_ARCHITECTURE}", weights="hf-hub:../../etc"))
    assert hub.asked == []


def test_what_cannot_be_found_is_named(folder: Path, hub: Any, on_hub: str, tmp_path: Path) -> None:
    with pytest.raises(HubError, match="there is no such repository"):
        open_source(SourceOptions(source="timm:hf-hub:me/nothing"))
    with pytest.raises(HubError, match="is no repository; expected owner/name"):
        open_source(SourceOptions(source="timm:hf-hub:nothing"))
    hub.put("me/bare", {"README.md": b""})
    with pytest.raises(HubError, match=r"config.json of hf-hub:me/bare@\w+: the repository lacks a file"):
        open_source(SourceOptions(source="timm:hf-hub:me/bare"))
    with pytest.raises(SourceError, match=r"has no config.json; expected a folder that timm's save_for_hf wrote"):
        open_source(SourceOptions(source=f"timm:local-dir:{tmp_path}"))
    with pytest.raises(SourceError, match="brings its weights, and `weights` a1_in1k are others"):
        open_source(SourceOptions(source="timm:hf-hub:me/birds", weights="a1_in1k"))
    with pytest.raises(SourceError, match="brings its weights; leave out `weights`"):
        open_source(SourceOptions(source=f"timm:local-dir:{folder}", weights="DEFAULT"))
    (folder / "model.safetensors").write_bytes(b"none")
    with pytest.raises(CheckpointError):
        open_source(SourceOptions(source=f"timm:local-dir:{folder}"))
    for path in folder.glob("*model*"):
        path.unlink()
    with pytest.raises(SourceError, match=r"has no weights; expected one of model.safetensors"):
        open_source(SourceOptions(source=f"timm:local-dir:{folder}"))
