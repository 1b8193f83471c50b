"""Options that were given and that nothing would read: refused by their names, before any work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import pruneport
from pruneport.errors import InputError
from tests.support.command_line import DIGITS

_LATENCY = "without a latency as the target, which is"
_TRAIN = ("finetune", "pruneport:digits_resnet", "--task", "no")
_STUDY = ("transfer", "--networks", "pruneport:digits_resnet", "--tasks", "pruneport:digits-parity", "--budgets", "1e9")
_NETWORK = DIGITS[:3]


def _half(verb: str, *words: str) -> tuple[str, ...]:
    return (verb, *DIGITS, *words)


_TABLE: dict[str, tuple[tuple[str, ...], str]] = {
    # how networks are timed, where none is
    "threads": (_half("compress", "--threads", "2"), f"--threads {_LATENCY} --flops"),
    "all of them": (
        _half("compress", "--provider", "cuda", "--repeats", "9", "--warmup", "2", "--device", "1", "--cuda-graph"),
        f"--provider and --repeats and --warmup and --device and --cuda-graph {_LATENCY} --flops",
    ),
    "a cache": (_half("ship", "--latency-cache", "cache"), f"--latency-cache {_LATENCY} --flops"),
    "a cache of a sweep": (_half("sweep", "--latency-cache", "cache"), f"--latency-cache {_LATENCY} --flops"),
    "a GPU's index": (_half("ship", "--device", "1"), "device is a GPU's index, and the provider is 'cpu'; got 1"),
    # calibration inputs, where there are none
    "labels": (
        _half("compress", "--calibration-labels", "folder"),
        "--calibration-labels: for criteria that read labels, taylor, snip, grasp, fisher, torch_pruning:",
    ),
    "unreadable images": (
        _half("compress", "--skip-unreadable"),
        "--skip-unreadable: for the images of --calibration, and there are none. Give --calibration FOLDER, or",
    ),
    "a number of inputs": (
        _half("compress", "--calibration-images", "64", "--accelerator", "cpu"),
        "--calibration-images, --accelerator: for calibration inputs, of which --recover none and the criterion and",
    ),
    # images, where there are none
    "a limit": (
        _half("ship", "--images-limit", "10"),
        "--images-limit: for --images, and there are none. Give --images",
    ),
    # a cluster
    "an address": (
        _half("sweep", "--address", "here", "--memory", "9"),
        "--address: for --executor ray. Give",
    ),
    "an address of a study": ((*_STUDY, "--address", "here"), "--address: for --executor ray. Give"),
    "advice and a report": (
        ("transfer", "--advise", "--report", "--budget", "1e9"),
        "--advise and --report are two ways to read a study; give one of them.",
    ),
    # others
    "a rate of no layer": (
        (*_TRAIN, "--keep-head", "--head-rate", "2"),
        "--head-rate: for a new output layer, and --keep-head keeps the one that is there. Leave out --keep-head, or",
    ),
    "a plot": (
        ("inspect", *_NETWORK, "--plot", "x.svg"),
        "--plot: for the curves of --sensitivity. Give --sensitivity",
    ),
    "images of no curves": (
        ("inspect", *_NETWORK, "--calibration", "photos", "--resize", "9"),
        "--resize, --calibration: for the curves of --sensitivity. Give --sensitivity, or leave --resize,",
    ),
    "a size of no images": (
        ("inspect", *_NETWORK, "--sensitivity", "--resize", "9"),
        "--resize: for the images of --calibration, and there are none.",
    ),
}


@pytest.mark.parametrize("name", _TABLE)
def test_an_option_that_nothing_reads(
    name: str, run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, said = _TABLE[name]
    monkeypatch.chdir(tmp_path)
    done = run(*words, *(() if words[0] == "inspect" else ("--out", "out")))
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert len(done.err[done.err.index("error: ") :].splitlines()) == 1
    progress = done.err[: done.err.index("error: ")].splitlines()
    assert all(line == "loading torch" or "building" in line for line in progress), done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("export", "--provider", "tensorrt"),
            "--provider: for int8. Add int8 to --precisions, or leave --provider out.",
        ),
        (
            ("export", "--calibration-images", "9", "--skip-unreadable"),
            "--calibration-images, --skip-unreadable: for int8",
        ),
        (("export", "--precisions", "int8", "--mean", "0.5"), "--mean: for the images of --calibration, and there are"),
        (("verify", "--images-limit", "9"), "--images-limit: for --images, and there are none. Give --images FOLDER"),
        (("verify", "--mean", "0.25"), "--mean: for --images, and there are none"),
        (("bench", "--device", "1"), "device is a GPU's index"),
    ],
)
def test_an_option_that_nothing_reads_of_a_bundle(
    words: tuple[str, ...], said: str, shipped: Path, run: Callable[..., Any], listing: Any
) -> None:
    before = listing(shipped)
    done = run(words[0], shipped, *words[1:])
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert listing(shipped) == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"threads": 2}, f"`threads` {_LATENCY} `macs`"),
        ({"calibration_labels": "predicted", "recover": "none"}, "`calibration_labels`: for criteria that read labels"),
        ({"skip_unreadable": True}, "`skip_unreadable`: for the images of `calibration`"),
        ({"calibration_images": 9, "recover": "none"}, "`calibration_images`: for calibration inputs, of which"),
    ],
)
def test_a_keyword_that_nothing_reads(options: dict[str, Any], said: str) -> None:
    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(256, 4))
    with pytest.raises(InputError, match=said):
        pruneport.prune(network, macs=0.5, input_shape=(3, 8, 8), **options)


@pytest.mark.slow
def test_what_is_read_in_another_combination(run: Callable[..., Any], digits: Path, tmp_path: Path) -> None:
    """The number of synthetic inputs that calibrate int8, and labels of a criterion that has a loss."""
    shipping = ("--repeats", "2", "--warmup", "1", "--batches", "1", "--parity-batches", "1", "--threads", "1")
    int8 = ("--precisions", "int8", "--calibration-images", "8", "--accelerator", "cpu")
    assert run(*_half("ship", *shipping, *int8), "--out", tmp_path / "one").code == 0
    by_loss = ("--criterion", "taylor", "--calibration", digits, "--calibration-labels", "folder", "--skip-unreadable")
    done = run("compress", *DIGITS, *by_loss, "--calibration-images", "16", "--out", tmp_path / "two")
    assert done.code == 0, done.err
