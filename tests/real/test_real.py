"""``ship`` on real checkpoints and real images: the promises, kept where it counts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import pruneport
from pruneport.commands import ShipConfig, ship
from pruneport.compress import prune as pruning

_DATA = Path(os.environ.get("PRUNEPORT_TEST_DATA", "."))
_NETWORKS = Path(__file__).with_name("networks.py")

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif("PRUNEPORT_TEST_DATA" not in os.environ, reason="PRUNEPORT_TEST_DATA is not set"),
]

_IMAGENET: dict[str, Any] = {"images": _DATA / "data/imagenet-samples", "images_limit": 250, "resize": 256}
_CIFAR: dict[str, Any] = {
    "images": _DATA / "data/tasks/cifar10/test",
    "images_limit": 500,
    "input_shape": (3, 32, 32),
    "round_to": 1,
}
_CASES = {
    "resnet50": (
        f"{_NETWORKS}:resnet50_v1",
        "resnet50_v1_imagenet.pth",
        0.85,
        _IMAGENET | {"input_shape": (3, 224, 224), "images_limit": 100},
    ),
    "mobilenet_v2": ("torchvision:mobilenet_v2", "mobilenet_v2-b0353104.pth", 0.75, _IMAGENET),
    "resnet56": (f"{_NETWORKS}:resnet56", "cifar10_resnet56.th", 0.9, _CIFAR),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", _CASES)
def test_ship(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, checkpoint, least, options = _CASES[name]
    made: list[pruning.Pruned] = []
    real = pruning.prune

    def keep(*arguments: Any) -> pruning.Pruned:
        made.append(real(*arguments))
        return made[-1]

    monkeypatch.setattr("pruneport.commands.timing.loop.prune", keep)
    config = ShipConfig(
        source=source,
        checkpoint=_DATA / "weights" / checkpoint,
        flops=0.75,
        recover="none",
        out=tmp_path / "bundle",
        parity_batches=(1, 3),
        batches=(1,),
        repeats=3,
        warmup=1,
        **options,
    )
    result = ship(config)
    plan, accuracy = result.plan, result.verification.accuracy
    assert abs(plan.pruned.macs / plan.dense.macs - 0.75) <= 0.01
    assert result.verification.ok
    assert accuracy is not None
    assert accuracy.images == options["images_limit"]
    assert accuracy.dense_torch > least
    assert accuracy.pruned_onnx == accuracy.pruned_torch
    assert accuracy.pruned_torch > 2 / len(list(options["images"].iterdir()))  # no longer a guess
    assert json.loads((tmp_path / "bundle/verify.json").read_text())["ok"]

    loaded = pruneport.load(tmp_path / "bundle", trust_source=True)
    ours, theirs = loaded.state_dict(), made[0].network.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())
    inputs = torch.randn(2, *plan.source.input_shape)
    with torch.inference_mode():
        assert torch.equal(loaded(inputs), made[0].network(inputs))
