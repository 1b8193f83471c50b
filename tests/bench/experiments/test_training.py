"""Accuracy against training FLOPs, tried on a tiny network with a checkpoint and images of its own."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pruneport.bench.experiments import accuracy, training
from pruneport.bench.experiments.plots.training import curves, needed
from pruneport.compress.options import TrainOptions
from pruneport.errors import InputError
from pruneport.models.factories import load_factory
from pruneport.models.images.images import list_folder
from pruneport.models.images.tasks import open_task

_NETWORK = """
    from torch import nn

    def tiny():
        def layer(inputs, outputs, stride):
            return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()

        layers = [*layer(3, 8, 2), *layer(8, 12, 2), *layer(12, 8, 2)]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
"""
_WORDS = ("--network", "tiny", "--accelerator", "cpu", "--recovery-steps", "2", "--batch-size", "16", "--tuned", "1")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of three colours and an untrained network, where the experiments look for such."""
    folder = tmp_path_factory.mktemp("data")
    draw = np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 8)):
        for channel, colour in enumerate(("blue", "green", "red")):
            place = folder / training._TASK / split / colour
            place.mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 128, (32, 32, 3), dtype=np.uint8)
                pixels[..., channel] += 80
                Image.fromarray(pixels).save(place / f"{number}.png")
    (folder / "tiny.py").write_text(textwrap.dedent(_NETWORK))
    (folder / "weights").mkdir()
    torch.manual_seed(0)
    torch.save(load_factory(f"{folder}/tiny.py:tiny")().state_dict(), folder / "weights" / "tiny.pth")
    return folder


@pytest.fixture
def run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script with more words; what it has written then."""
    case = accuracy.Case(
        source=f"{data}/tiny.py:tiny",
        weights="tiny.pth",
        shape=(3, 32, 32),
        round_to=1,
        kept=(0.5,),
        calibration=32,
    )
    monkeypatch.setitem(accuracy.CASES, "tiny", case)

    def run(*words: str) -> dict[str, Any]:
        out = tmp_path / "rows.json"
        monkeypatch.setattr(sys, "argv", ["training", "--data", str(data), "--out", str(out), *_WORDS, *words])
        training.main()
        content: dict[str, Any] = json.loads(out.read_text())
        return content

    return run


@pytest.mark.slow
def test_every_start_is_trained_with_its_own_best_rate(run: Any, tmp_path: Path) -> None:
    starts = ("plain", "imitated")
    content = run("--epochs", "1", "2", "--rates", "1e-6", "1e-2", "--starts", *starts)
    rows = content["rows"]
    assert [(row["start"], row["epochs"]) for row in rows] == [(s, e) for e in (0, 1, 2) for s in starts]
    tried = content["rates"]
    assert [(row["start"], row["epochs"], row["learning_rate"]) for row in tried] == [
        (start, 1, rate) for start in starts for rate in (1e-6, 1e-2)
    ], "two epochs take the rate of one"
    assert {row["images"] for row in tried} == {9}, "a fifth of the training images"
    for row in rows[2:]:
        took = content["starts"][row["start"]]
        assert row["steps"] == 3 * row["epochs"]
        assert row["flops"] == 16 * row["steps"] * 2 * (3 * took["macs"] + took["dense_macs"])
        own = {other["learning_rate"]: other["top1"] for other in tried if other["start"] == row["start"]}
        assert own[row["learning_rate"]] == max(own.values())
        assert row["top1_low"] <= row["top1"] <= row["top1_high"]
        assert (row["test_images"], row["train_images"]) == (24, 48)
    took = content["starts"]["imitated"]
    made = took["imitation"]
    assert (made["steps"], 1 <= made["trial_steps"] <= 4) == (2, True), "one step for each rate that was tried"
    steps, images = made["steps"] + made["trial_steps"], 28  # 4 of 32 images are set aside
    assert took["imitation_flops"] == steps * images * 2 * (3 * took["macs"] + took["dense_macs"])
    assert content["starts"]["plain"]["imitation_flops"] == 0
    assert (tmp_path / "rows.svg").is_file()
    assert {file.suffix for file in (tmp_path / "rows-runs").iterdir()} == {".start"}, "states of what is done"


def test_it_goes_on_where_it_stopped(run: Any, tmp_path: Path) -> None:
    words = ("--starts", "plain", "--rates", "1e-3")
    first = run(*words, "--epochs", "2", "--minutes", "0")
    assert [row["epochs"] for row in first["rows"]] == [0], "the time was over"
    assert first["rates"] == []
    second = run(*words, "--epochs", "0.5")
    assert [row["epochs"] for row in second["rows"]] == [0, 0.5]
    third = run(*words, "--epochs", "0.5", "1", "--starts", "plain", "recovered")
    assert third["rows"][:2] == second["rows"]
    assert [(row["start"], row["epochs"]) for row in third["rows"][2:]] == [
        ("recovered", 0),
        ("recovered", 0.5),
        ("plain", 1),
        ("recovered", 1),
    ]
    assert third["starts"]["recovered"]["imitation_flops"] == 0
    with pytest.raises(InputError, match="other settings"):
        run(*words, "--epochs", "1", "--distill", "0.5")


def test_images_that_choose_the_rate_are_no_others(data: Path) -> None:
    options = TrainOptions(task=data / training._TASK)
    task = open_task(options.task, options, (3, 32, 32))
    tuning = training._tuning(task, 32)
    calibrated = list_folder(options.task / "train", (3, 32, 32), task.train.preprocessing, 32).paths
    assert not {*tuning.test.paths} & {*tuning.train.paths, *calibrated, *task.test.paths}
    assert {*tuning.test.paths, *tuning.train.paths} == {*task.train.paths}
    assert set(tuning.test.labels or ()) == {0, 1, 2}


def _row(start: str, epochs: float, top1: float, seed: int = 0) -> dict[str, Any]:
    return {"start": start, "epochs": epochs, "seed": seed, "top1": top1, "flops": 10 * epochs, "test_images": 100}


def test_what_an_accuracy_needs_is_read_between_budgets() -> None:
    rows = [_row("plain", 0, 0.4), _row("plain", 4, 0.9), _row("plain", 2, 0.5), _row("plain", 2, 0.7, seed=1)]
    lines = curves([*rows, _row("imitated", 0, 0.8), _row("imitated", 1, 0.7)])
    assert [point["epochs"] for point in lines["plain"]] == [0, 2, 4]
    assert lines["plain"][1]["top1"] == pytest.approx(0.6), "the mean of both seeds"
    half, most, beyond = needed(lines, {"imitated": 5.0}, [0.75, 0.9, 0.95])
    assert half["plain"] == pytest.approx({"epochs": 3, "flops": 30, "flops_with_imitation": 30})
    assert half["imitated"] == {"epochs": 0, "flops": 0, "flops_with_imitation": 5}
    assert most["plain"]["epochs"] == pytest.approx(4)
    assert most["imitated"] is None
    assert beyond == {"top1": 0.95, "plain": None, "imitated": None}
