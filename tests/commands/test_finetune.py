"""``pruneport finetune`` and ``pruneport transfer`` as they are typed."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import pruneport
from pruneport import commands
from pruneport.bench.transfer.study import identity
from pruneport.commands.arguments.flags import parse
from pruneport.commands.configs import TransferConfig
from pruneport.commands.transferring import read_study
from pruneport.errors import InputError
from pruneport.files import held
from pruneport.models.digits.tasks import write_digits_task

_PIXELS = ("--mean", "0.5", "--std", "0.5", "--augment", "crop", "--optimizer", "sgd")
_DIGITS = ("pruneport:digits_resnet", "--weights", "DEFAULT")


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parity")
    write_digits_task("parity", folder)
    return folder


@pytest.mark.slow
def test_a_bundle_is_trained_and_is_a_bundle_again(run: Any, bundle: Path, task: Path, tmp_path: Path) -> None:
    out = tmp_path / "trained"
    done = run("finetune", bundle, "--task", task, "--epochs", 1, *_PIXELS, "--out", out, "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["training"]["top1"] > 0.9
    assert result["training"]["classes"] == ["even", "odd"]
    assert not (tmp_path / "trained.training").exists()
    network = pruneport.load(out)
    assert network(torch.zeros(3, 1, 8, 8)).shape == (3, 2)
    assert run("export", out).code == 0
    seen = run("verify", out, "--images", task / "test", "--mean", 0.5, "--std", 0.5, "--json")
    assert seen.code == 0, seen.err
    accuracy = json.loads(seen.out)["accuracy"]
    assert accuracy["dense_torch"] is None  # its head was never trained
    assert accuracy["pruned_onnx"] == pytest.approx(result["training"]["top1"])
    assert run("bench", out, "--repeats", 2, "--warmup", 1, "--batches", 1).code == 0
    assert "fine-tuned on" in (out / "report.html").read_text()
    again = run("finetune", out, "--task", task, "--steps", 2, *_PIXELS, "--keep-head", "--out", tmp_path / "again")
    assert again.code == 0, again.err


def test_how_it_was_asked_for_makes_no_other_study(run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[TransferConfig] = []

    def transfer(config: TransferConfig, progress: object, command: str) -> None:
        asked.append(config)
        raise InputError("enough")

    monkeypatch.setattr(commands, "transfer", transfer)
    file = tmp_path / "study.yaml"
    file.write_text("kept: [1.0, 0.5]\nbatch_size: 8\n", encoding="utf-8")
    run("transfer", file)
    run("transfer", "--batch-size", 8, "--kept", 1.0, 0.5, "--out", tmp_path / "elsewhere", "--json")
    one, other = asked
    assert identity(one) == identity(other)
    assert identity(one) != identity(replace(one, batch_size=9))
    assert pickle.loads(pickle.dumps(other)) == other  # to the processes that train


def _split(task: Path, place: Path, change: Callable[[Path], None]) -> Path:
    shutil.copytree(task, place)
    change(place)
    return place


def _corrupt(place: Path) -> None:
    next((place / "train" / "odd").iterdir()).write_bytes(b"\x89PNG\r\n\x1a\nnothing more")


def _one_class(place: Path) -> None:
    for part in ("train", "test"):
        shutil.rmtree(place / part / "odd")


def _empty_split(place: Path) -> None:
    for kind in ("even", "odd"):
        shutil.rmtree(place / "test" / kind)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_one_class, "has one class, even; expected at least two"),
        (_empty_split, "no images in"),
        (lambda place: (place / "test" / "odd").rename(place / "test" / "0dd"), "differ (0dd, odd in one only)"),
        (lambda place: (place / "test" / "zero").mkdir(), "no images of zero"),
        (_corrupt, "cannot be read"),
        (lambda place: shutil.rmtree(place / "test"), "is no task: it needs the folders train and test"),
    ],
)
def test_tasks_that_cannot_be_used(
    change: Callable[[Path], None], said: str, run: Any, task: Path, tmp_path: Path, listing: Any
) -> None:
    place = _split(task, tmp_path / "task", change)
    before = listing(tmp_path)
    done = run("finetune", *_DIGITS, "--task", place, *_PIXELS, "--out", tmp_path / "out")
    assert done.code == 2
    assert said in done.err
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--flops", "0.5"), "--flops without --schedule"),
        (("--criterion", "l2", "--cuts", "3"), "--criterion, --cuts without --schedule"),
        (("--schedule", "loss"), "exactly one of --flops, --params and --ratio is needed"),
        (("--schedule", "loss", "--params", "0.5"), "give --flops in place"),
        (("--keep-head",), "has 10 outputs and"),
        (("--epochs", "1", "--steps", "3"), "--epochs and --steps were given"),
        (("--accelerator", "cuda", "--devices", "9"), "torch sees"),
    ],
)
def test_flags_that_do_not_go_together(flags: tuple[str, ...], said: str, run: Any, task: Path, tmp_path: Path) -> None:
    done = run("finetune", *_DIGITS, "--task", task, *_PIXELS, *flags, "--out", tmp_path / "out")
    assert done.code == 2
    assert said in done.err
    assert list(tmp_path.iterdir()) == []


def test_a_second_training_to_the_same_folder_is_refused(run: Any, task: Path, tmp_path: Path) -> None:
    state = tmp_path / "out.training"
    state.write_text("theirs")
    with held(tmp_path / ".out.training.lock", tmp_path / "out"):
        done = run("finetune", *_DIGITS, "--task", task, *_PIXELS, "--out", tmp_path / "out")
    assert done.code == 2
    assert "another process (pid " in done.err
    assert list(tmp_path.iterdir()) == [state]
    assert state.read_text() == "theirs"


def test_a_bundle_knows_its_own_source(run: Any, bundle: Path, task: Path, tmp_path: Path) -> None:
    done = run("finetune", bundle, "--weights", "DEFAULT", "--task", task, "--out", tmp_path / "out")
    assert done.code == 2
    assert "leave out --weights" in done.err


def test_a_schedule_cannot_keep_more_than_there_is(run: Any, bundle: Path, task: Path, tmp_path: Path) -> None:
    asked = ("--task", task, *_PIXELS, "--schedule", "loss", "--flops", "0.9", "--out", tmp_path / "out")
    done = run("finetune", bundle, *asked)
    assert done.code == 2
    assert "of it already; give a smaller --flops" in done.err
    assert list(tmp_path.iterdir()) == [bundle]


def test_a_training_that_cannot_begin_leaves_nothing(run: Any, task: Path, tmp_path: Path) -> None:
    done = run("finetune", *_DIGITS, "--task", task, *_PIXELS, "--out", tmp_path / "out", "--budget", "1e3")
    assert done.code == 2
    assert "more than the budget" in done.err
    assert list(tmp_path.iterdir()) == []
    assert "there is no bundle at halv" in run("finetune", "halv", "--task", task, "--out", tmp_path / "out").err


_UNTRAINABLE = """
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))

class Chooses(Net):
    def forward(self, x):
        return super().forward(x).argmax(1)

class Averages(Net):
    def forward(self, x):
        return super().forward(x).mean(0, keepdim=True)

class Gradless(Net):
    def forward(self, x):
        with torch.no_grad():
            return super().forward(x)
"""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Chooses", "its first output for two images is torch.int64 of shape (2,); expected scores of shape (2, 2)"),
        ("Averages", "its first output for two images is torch.float32 of shape (1, 2); expected scores of shape"),
        ("Gradless", "no gradient reaches its weights. Let its forward compute with gradients"),
    ],
)
def test_a_network_that_cannot_be_trained_is_refused_before_it_is(
    name: str, said: str, run: Any, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "users_untrainable.py").write_text(_UNTRAINABLE)
    source = (f"users_untrainable.py:{name}", "--input-shape", "1", "8", "8")
    done = run("finetune", *source, "--task", task, *_PIXELS, "--out", "out")
    assert (done.code, done.out) == (2, "")
    assert f"the network cannot be trained: {said}" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["users_untrainable.py"]


def test_a_stopped_training_wants_the_same_settings(run: Any, task: Path, tmp_path: Path) -> None:
    command = ("finetune", *_DIGITS, "--task", task, *_PIXELS, "--out", tmp_path / "out", "--save-every", 0)
    done = run(*command, "--learning-rate", "1e6")
    assert done.code == 2
    assert "lower --learning-rate" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["out.training"]
    changed = run(*command, "--learning-rate", "0.01")
    assert changed.code == 2
    assert "--learning-rate (1000000.0, now 0.01)" in changed.err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("kept: [1.0, 0.5", "is not YAML"),
        ("milk and bread", "holds no options"),
        ("kepd: [0.5]", "has no option 'kepd'. Did you mean kept"),
        ("tasks: [$NO_SUCH_VARIABLE/birds]", "names a variable that is not set"),
        ("tasks: [nowhere]", "the study has no networks"),
        ("kept: [1.0, lots]", "kept is [1.0, lots]; expected numbers, such as [1.0, 0.5]"),
        ("kept: 50%", "kept is 50%; expected numbers, such as [1.0, 0.5]. Did you mean [0.5]?"),
        ("seeds: 0,1", "seeds is 0,1; expected whole numbers, such as [1, 8]. Did you mean [0, 1]?"),
        ("seeds: [0.5]", "seeds is 0.5; expected whole numbers"),
        ("scopes: [filter]", "scopes is 'filter'; expected one of filters, channels. Did you mean filters?"),
        ("input_shape: [3, 32]", "input_shape is [3, 32]; expected three whole numbers C, H, W"),
        ("round_to: [8, 4]", "round_to is [8, 4]; expected one whole number"),
        ("jobs: null", "jobs is None; expected one whole number"),
        ("calibration: [a, b]", "calibration is [a, b]; expected one value.\n"),
        ("round_to: []", "round_to is []; expected one whole number"),
    ],
)
def test_study_files_that_cannot_be_used(content: str, said: str, run: Any, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(content)
    done = run("transfer", tmp_path / "study.yaml", "--out", tmp_path / "out")
    assert done.code == 2
    assert said.lower() in done.err.lower()
    assert not (tmp_path / "out").exists()


def test_flags_have_the_last_word_over_a_studys_file(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("kept: [1, 0.5]\nbudgets: 1e9\nnetworks: [a:b]\ntasks: 2024\ncalibration: photos\nmemory: 1\n")
    config, as_json = parse("transfer", [str(file), "--kept", "0.25", "--json"], read_study(file))
    assert (config.study, as_json) == (file, True)
    assert (config.kept, config.budgets, config.networks, config.tasks) == ((0.25,), (1e9,), ("a:b",), ("2024",))
    assert (config.calibration, config.memory, config.seeds) == (Path("photos"), 1.0, (0, 1, 2))


def test_transfer_as_typed(run: Any, tmp_path: Path) -> None:
    assert "give a study, as in: pruneport transfer study.yaml" in run("transfer").err
    assert "--advise needs --budget" in run("transfer", "--advise", "--out", tmp_path).err
    assert "there is no study at" in run("transfer", "--advise", "--budget", "1e9", "--out", tmp_path / "x").err
    assert "without --advise" in run("transfer", "--budget", "1e9", "--out", tmp_path / "x").err
    assert "none.yaml does not exist; expected a .yaml file" in run("transfer", tmp_path / "none.yaml").err
    grid = ("--networks", "net", "--tasks", tmp_path, "--budgets", "1e9")
    seeds = run("transfer", *grid, "--seeds", "0", "9" * 20, "--out", tmp_path / "x")
    assert "--seeds is 99999999999999999999; expected a whole number" in seeds.err
    late = run("transfer", "--out", tmp_path / "x", "study.yaml")
    assert late.code == 2
    assert "the study comes first: pruneport transfer study.yaml, then the flags" in late.err
    assert "--memory is 0; expected GiB above 0" in run("transfer", *grid, "--memory", 0, "--out", tmp_path / "x").err
