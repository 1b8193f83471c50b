"""The command line called in this process, and one shipped bundle to copy and damage."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from pruneport.cli import main
from pruneport.models.digits.train import write_images
from tests.support.command_line import DIGITS

QUICK = ("--repeats", "3", "--warmup", "1", "--batches", "1")


class Ran(NamedTuple):
    """What a run of the command line left."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    def call(*arguments: object) -> Ran:
        capfd.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # tyro's own way out
            code = int(stop.code or 0)
        return Ran(code, *capfd.readouterr())

    return call


@pytest.fixture(autouse=True)
def _no_traces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Users' modules are imported in this process: forget them, and write no bytecode beside them."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    known = set(sys.modules)
    yield
    for name in set(sys.modules) - known:
        if name.startswith("users_"):
            del sys.modules[name]


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of digits in class folders, which the network was not trained on."""
    return write_images(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shipped") / "bundle"
    assert main(["ship", *DIGITS, *QUICK, "--parity-batches", "1", "3", "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def bundle(shipped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shipped, tmp_path / "bundle"))
