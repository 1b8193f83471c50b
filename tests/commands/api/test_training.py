"""``pruneport.finetune``: what the command does, by keyword arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pruneport
from pruneport.errors import SourceError, TargetError
from pruneport.models.digits.tasks import write_digits_task
from small_networks import same_state

_QUICK: dict[str, Any] = {"steps": 2, "mean": [0.5], "std": [0.5], "augment": "none"}


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parity")
    write_digits_task("parity", folder)
    return folder


@pytest.mark.slow
def test_a_source_becomes_a_trained_bundle_and_its_network(task: Path, tmp_path: Path) -> None:
    result = pruneport.finetune(
        "pruneport:digits_resnet",
        weights="DEFAULT",
        task=task,
        out=tmp_path / "out",
        schedule="loss",
        macs=0.6,
        cuts=1,
        warmup=0,
        **_QUICK,
    )
    assert result.plan.training.classes == ("even", "odd")
    assert result.plan.macs_kept < 0.7
    assert result.events[-1].step == 2
    assert not result.network.training
    assert same_state(pruneport.load(tmp_path / "out"), result.network)
    again = pruneport.finetune(tmp_path / "out", task=str(task), out=str(tmp_path / "more"), keep_head=True, **_QUICK)
    assert again.network(torch.zeros(1, 1, 8, 8)).shape == (1, 2)


def test_names_of_the_new_classes_are_not_held_against_the_old_ones(task: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("gerade\nungerade\n")
    given: dict[str, Any] = {"task": task, "out": tmp_path / "out", "class_names": tmp_path / "names.txt", **_QUICK}
    result = pruneport.finetune("pruneport:digits_resnet", weights="DEFAULT", **given)
    assert result.plan.source.class_names == ("gerade", "ungerade")


def test_what_it_refuses(task: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"the source is a Linear; .*pruneport\.save"):
        pruneport.finetune(nn.Linear(1, 1), task=task, out=tmp_path / "out")  # type: ignore[arg-type]
    with pytest.raises(TargetError, match="`macs` without `schedule`"):
        pruneport.finetune("pruneport:digits_resnet", task=task, out=tmp_path / "out", macs=0.5)
    with pytest.raises(TypeError, match=r"finetune takes no argument 'epoch'"):
        pruneport.finetune("pruneport:digits_resnet", task=task, out=tmp_path / "out", epoch=1)  # type: ignore[call-arg]
    assert not (tmp_path / "out").exists()
